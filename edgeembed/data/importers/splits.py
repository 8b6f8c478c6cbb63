"""Which images are train, val and test: by the names that people use, else drawn."""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Sequence

from edgeembed.data.manifest import SPLITS

log = logging.getLogger(__name__)

MANY_CLASSES = 50
TEST_SHARE, VAL_SHARE = 0.2, 0.1
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def split_named(name: str) -> str | None:
    """The split that a folder or a cell names, in any case; None for any other name."""
    return SPLIT_NAMES.get(name.strip().casefold())


def draw_splits(labels: Sequence[str | None], *, seed: int = 0) -> tuple[list[str], list[str | None]]:
    """Split and role of each image, by its label; unlabelled images are for training.

    With 50 classes and more, whole classes of two images and more are held out for val and test, so that retrieval is
    measured on things never trained on; with fewer, images of every class of three and more are.
    """
    by_class: dict[str, list[int]] = defaultdict(list)
    for image, label in enumerate(labels):
        if label is not None:
            by_class[label].append(image)
    splits, draw = ["train"] * len(labels), random.Random(seed)
    if not by_class:
        return splits, [None] * len(labels)
    by_whole_class = len(by_class) >= MANY_CLASSES
    if by_whole_class:
        names = sorted(label for label, images in by_class.items() if len(images) > 1)
        for number, name in enumerate(draw.sample(names, len(names))):
            for image in by_class[name]:
                splits[image] = share_split(number, len(names))
    else:
        for name in sorted(by_class):
            images = by_class[name]
            for number, image in enumerate(draw.sample(images, len(images))):
                splits[image] = share_split(number, len(images))
    counts = Counter(splits)
    if counts["train"] == len(labels):
        log.warning("no train, val and test given, and nothing held out: too few images of each class")
    else:
        log.warning(
            "no train, val and test given: held out %s, drawn at random: %s",
            "whole classes" if by_whole_class else "images of every class",
            ", ".join(f"{split} {counts[split]}" for split in SPLITS),
        )
    roles = {"test": "both"} if by_whole_class else {"test": "query", "train": "index"}
    return splits, [None if label is None else roles.get(split) for label, split in zip(labels, splits, strict=True)]


def share_split(number: int, count: int) -> str:
    """The first fifth is test, the next tenth val; at least two of a set of three or more are left to train."""
    if number < round(TEST_SHARE * count):
        return "test"
    return "val" if number < round((TEST_SHARE + VAL_SHARE) * count) else "train"
