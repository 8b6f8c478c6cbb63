"""The queries and index images that the gate uses, where the protocol has more than its limits allow."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeembed.data.manifest import Rows
from edgeembed.evaluation import RetrievalProtocol, have_match
from edgeembed.export.gate import LEAST_CLASSES

LEAST_OF_CLASS = 8  # images that are left of a class that is cut


@dataclass(frozen=True, kw_only=True)
class ClassRows:
    """The query and index rows of one class, in the order in which a sample takes them."""

    query: Rows
    index: Rows

    @property
    def size(self) -> int:
        return len(np.union1d(self.query, self.index))

    def first(self, count: int) -> ClassRows:
        """The rows of `count` images, at least 2: half queries and half index images, where the class has enough."""
        if np.array_equal(self.query, self.index):  # leave-one-out
            return ClassRows(query=self.query[:count], index=self.index[:count])
        num_queries = min(len(self.query), max(count // 2, count - len(self.index)))
        return ClassRows(query=self.query[:num_queries], index=self.index[: count - num_queries])


def sample_classes(planned: RetrievalProtocol, max_images: int) -> RetrievalProtocol:
    """A sample of a protocol: whole classes in a seeded order, so that nearly every query keeps a match.

    Rows drawn one by one would leave hardly any query with a match where there are many classes. Of a huge class only a
    part is taken, so that there are enough classes for an interval over classes. A larger sample contains every smaller
    one.
    """
    everything = np.union1d(planned.query, planned.index)
    if planned.not_scored is not None or len(everything) <= max_images:
        return planned
    classes = matched_classes(planned)
    size_K = np.array([one.size for one in classes])
    share = max(LEAST_OF_CLASS, max_images // LEAST_CLASSES, even_share(size_K, max_images))
    taken: list[ClassRows] = []
    room = max_images
    for one in classes:
        if room < 2:
            break
        taken.append(one.first(min(share, room)))
        room -= taken[-1].size
    query, index = (np.sort(np.concatenate([getattr(one, side) for one in taken])) for side in ("query", "index"))
    if share >= size_K.max():  # no class was cut, so fill up with distractors: index images without a query
        others = np.setdiff1d(planned.index, np.union1d(query, index))
        index = np.union1d(index, np.random.default_rng(0).permutation(others)[:room])
    return planned.restrict(query, index)


def matched_classes(planned: RetrievalProtocol) -> list[ClassRows]:
    """The rows of each class that has at least one query with a match, in a seeded order."""
    query, index = planned.query, planned.index
    query = query[have_match(planned.manifest, query, index)]
    rows_of: dict[tuple[str, str | None], tuple[list[int], list[int]]] = {}
    for row in query.tolist():
        rows_of.setdefault(planned.manifest.class_of(row), ([], []))[0].append(row)
    for row in index.tolist():
        if (name := planned.manifest.class_of(row)) in rows_of:
            rows_of[name][1].append(row)
    rng = np.random.default_rng(0)
    image_number = planned.manifest.image_number
    classes = [shuffle_class(*rows_of[name], image_number, rng) for name in sorted(rows_of, key=str)]
    return [classes[place] for place in rng.permutation(len(classes))]


def shuffle_class(
    query: Sequence[int], index: Sequence[int], image_number: Rows, rng: np.random.Generator
) -> ClassRows:
    """The rows of a class in random order; those whose image is both query and index image come last.

    Otherwise a small sample could hold a query whose only index image is the query itself.
    """
    shuffled = [rng.permutation(np.array(rows, dtype=np.int64)) for rows in (query, index)]
    if set(query) == set(index):
        return ClassRows(query=shuffled[0], index=shuffled[0])
    apart = [
        rows[np.argsort(np.isin(image_number[rows], image_number[list(other)]), kind="stable")]
        for rows, other in zip(shuffled, (index, query), strict=True)
    ]
    return ClassRows(query=apart[0], index=apart[1])


def even_share(size_K: Rows, max_images: int) -> int:
    """The largest cap on the images of a class with which all classes, of sizes (K,), have at most `max_images`."""
    caps = range(int(size_K.max()) + 1)
    return bisect.bisect_right(caps, max_images, key=lambda cap: np.minimum(size_K, cap).sum()) - 1
