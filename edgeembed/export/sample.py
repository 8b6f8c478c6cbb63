"""Which queries and index images a file is measured on, where the protocol has more than are paid for."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeembed.data.manifest import Rows
from edgeembed.evaluation import EvaluationSet, have_match, name_of, restrict
from edgeembed.export.gate import LEAST_CLASSES

LEAST_OF_CLASS = 8  # images of a class that is cut


@dataclass(frozen=True, kw_only=True)
class ClassRows:
    """The queries and index images of one class, in the order in which a sample takes them."""

    query: Rows
    index: Rows

    @property
    def size(self) -> int:
        return len(np.union1d(self.query, self.index))

    def first(self, count: int) -> ClassRows:
        """At least two images, so that a query keeps a match; at most half of them queries, where there is a choice."""
        if np.array_equal(self.query, self.index):  # leave-one-out
            return ClassRows(query=self.query[:count], index=self.index[:count])
        num_queries = min(len(self.query), max(count // 2, count - len(self.index)))
        return ClassRows(query=self.query[:num_queries], index=self.index[: count - num_queries])


def sample_classes(planned: EvaluationSet, most: int) -> EvaluationSet:
    """At most `most` images of a protocol: whole classes in a seeded order, so that nearly every query keeps a match.

    Rows spread evenly would leave hardly any match where there are many classes. Of a huge class only a part is taken,
    so that there are enough classes for an interval over them. A larger sample holds every smaller one.
    """
    everything = np.union1d(planned.query, planned.index)
    if planned.not_scored is not None or len(everything) <= most:
        return planned
    classes = matched_classes(planned)
    size_K = np.array([one.size for one in classes])
    share = max(LEAST_OF_CLASS, most // LEAST_CLASSES, even_share(size_K, most))
    taken: list[ClassRows] = []
    room = most
    for one in classes:
        if room < 2:
            break
        taken.append(one.first(min(share, room)))
        room -= taken[-1].size
    query, index = (np.sort(np.concatenate([getattr(one, side) for one in taken])) for side in ("query", "index"))
    if share >= size_K.max():  # every match is in; the images of other classes make the search harder
        others = np.setdiff1d(planned.index, np.union1d(query, index))
        index = np.union1d(index, np.random.default_rng(0).permutation(others)[:room])
    return restrict(planned, query, index)


def matched_classes(planned: EvaluationSet) -> list[ClassRows]:
    """The classes with at least one query that has a match, and the rows of each, in a seeded order."""
    query, index = planned.query, planned.index
    query = query[have_match(planned.manifest, query, index)]
    rows_of: dict[tuple[str, str | None], tuple[list[int], list[int]]] = {}
    for row in query.tolist():
        rows_of.setdefault(name_of(planned.manifest, row), ([], []))[0].append(row)
    for row in index.tolist():
        if (name := name_of(planned.manifest, row)) in rows_of:
            rows_of[name][1].append(row)
    rng = np.random.default_rng(0)
    image_number = planned.manifest.image_number
    classes = [ordered(*rows_of[name], image_number, rng) for name in sorted(rows_of, key=str)]
    return [classes[place] for place in rng.permutation(len(classes))]


def ordered(query: Sequence[int], index: Sequence[int], image_number: Rows, rng: np.random.Generator) -> ClassRows:
    """Shuffled; first the images that are not on the other side too, or a query could be left with itself alone."""
    shuffled = [rng.permutation(np.array(rows, dtype=np.int64)) for rows in (query, index)]
    if set(query) == set(index):
        return ClassRows(query=shuffled[0], index=shuffled[0])
    apart = [
        rows[np.argsort(np.isin(image_number[rows], image_number[list(other)]), kind="stable")]
        for rows, other in zip(shuffled, (index, query), strict=True)
    ]
    return ClassRows(query=apart[0], index=apart[1])


def even_share(size_K: Rows, most: int) -> int:
    """The largest number of images that every class may give, where a smaller class gives all that it has."""
    return (
        bisect.bisect_right(range(int(size_K.max()) + 1), most, key=lambda share: np.minimum(size_K, share).sum()) - 1
    )
