"""Samples the queries and index images of the gate, where the protocol has more than the gate can afford."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeembed.data.manifest import Rows
from edgeembed.evaluation import RetrievalProtocol, have_match
from edgeembed.export.gate import MIN_CLASSES

MIN_IMAGES_PER_CLASS = 8
"""A class with more images than its share is cut, but never to fewer than this."""


@dataclass(frozen=True, kw_only=True)
class ClassRows:
    """The query and index rows of one class, in the order in which a sample takes them."""

    query: Rows
    index: Rows

    @property
    def size(self) -> int:
        return len(np.union1d(self.query, self.index))

    def first(self, count: int) -> ClassRows:
        """Returns the rows of `count` >= 2 images: half queries and half index images, where the class has enough."""
        if np.array_equal(self.query, self.index):  # leave-one-out
            return ClassRows(query=self.query[:count], index=self.index[:count])
        num_queries = min(len(self.query), max(count // 2, count - len(self.index)))
        return ClassRows(query=self.query[:num_queries], index=self.index[: count - num_queries])


def sample_classes(protocol: RetrievalProtocol, max_images: int) -> RetrievalProtocol:
    """Returns a sample of a protocol: whole classes in a seeded order, so that nearly every query keeps a match.

    Rows drawn one by one would leave hardly any query with a match where there are many classes. Of a huge class only a
    part is taken, so that there are enough classes for an interval over classes. A larger sample contains every smaller
    one.
    """
    all_rows = np.union1d(protocol.query, protocol.index)
    if protocol.not_scored is not None or len(all_rows) <= max_images:
        return protocol
    classes = matched_classes(protocol)
    size_K = np.array([rows.size for rows in classes])
    # A cap with which all classes fit, but never below an equal share for MIN_CLASSES classes.
    per_class = max(MIN_IMAGES_PER_CLASS, max_images // MIN_CLASSES, max_per_class(size_K, max_images))
    taken: list[ClassRows] = []
    room = max_images
    for rows in classes:
        # A query needs a match: a class with one image shows nothing.
        if room < 2:
            break
        taken.append(rows.first(min(per_class, room)))
        room -= taken[-1].size
    query, index = (np.sort(np.concatenate([getattr(rows, side) for rows in taken])) for side in ("query", "index"))
    if per_class >= size_K.max():  # no class was cut, so there is room for distractors: index images without a query
        distractors = np.setdiff1d(protocol.index, np.union1d(query, index))
        index = np.union1d(index, np.random.default_rng(0).permutation(distractors)[:room])
    return protocol.restrict(query, index)


def matched_classes(protocol: RetrievalProtocol) -> list[ClassRows]:
    """Returns the rows of each class that has at least one query with a match; the classes in a seeded order."""
    query, index = protocol.query, protocol.index
    query = query[have_match(protocol.manifest, query, index)]
    rows_of: dict[tuple[str, str | None], tuple[list[int], list[int]]] = {}
    for row in query.tolist():
        rows_of.setdefault(protocol.manifest.class_of(row), ([], []))[0].append(row)
    for row in index.tolist():
        if (name := protocol.manifest.class_of(row)) in rows_of:
            rows_of[name][1].append(row)
    rng = np.random.default_rng(0)
    image_number = protocol.manifest.image_number
    classes = [shuffle_class(*rows_of[name], image_number, rng) for name in sorted(rows_of, key=str)]
    return [classes[place] for place in rng.permutation(len(classes))]


def shuffle_class(
    query: Sequence[int], index: Sequence[int], image_number: Rows, rng: np.random.Generator
) -> ClassRows:
    """Shuffles the rows of a class; those whose image is both query and index image come last.

    Otherwise a small sample could hold a query whose only index image is the query itself.
    """
    shuffled = [rng.permutation(np.array(rows, dtype=np.int64)) for rows in (query, index)]
    # Leave-one-out: both sides in one order, so that a sample takes the same images on both.
    if set(query) == set(index):
        return ClassRows(query=shuffled[0], index=shuffled[0])
    apart = [
        rows[np.argsort(np.isin(image_number[rows], image_number[list(other)]), kind="stable")]
        for rows, other in zip(shuffled, (index, query), strict=True)
    ]
    return ClassRows(query=apart[0], index=apart[1])


def max_per_class(size_K: Rows, max_images: int) -> int:
    """Returns the largest number of images per class with which classes of sizes (K,) have at most `max_images`."""
    caps = range(int(size_K.max()) + 1)
    return bisect.bisect_right(caps, max_images, key=lambda cap: np.minimum(size_K, cap).sum()) - 1
