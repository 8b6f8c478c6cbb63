"""Assigns images to train, val and test: by the usual names of splits, else at random."""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Sequence

from edgeembed.data.manifest import SPLITS

log = logging.getLogger(__name__)

# Of fewer classes, a held-out fifth would be too few to measure retrieval on.
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


def parse_split(name: str) -> str | None:
    """The split that the name of a folder or a cell stands for, without regard to case; None for any other name."""
    return SPLIT_NAMES.get(name.strip().casefold())


def draw_splits(labels: Sequence[str | None], *, seed: int = 0) -> tuple[list[str], list[str | None]]:
    """Draws the split and role of each image from its label; unlabelled images are for training.

    With at least MANY_CLASSES classes, whole classes (of two images or more) are held out for val and test, so that
    retrieval is measured on unseen classes. With fewer, images of every class are held out: a fifth for test and a
    tenth for val, rounded, so that a class of two images gives one to val and none to test.
    """
    # Classes are drawn in sorted order, so that the splits depend on the labels and the seed alone.
    by_class: dict[str, list[int]] = defaultdict(list)
    for image, label in enumerate(labels):
        if label is not None:
            by_class[label].append(image)
    splits, rng = ["train"] * len(labels), random.Random(seed)
    if not by_class:
        return splits, [None] * len(labels)
    holds_out_classes = len(by_class) >= MANY_CLASSES
    if holds_out_classes:
        names = sorted(label for label, images in by_class.items() if len(images) > 1)
        for number, name in enumerate(rng.sample(names, len(names))):
            for image in by_class[name]:
                splits[image] = share_split(number, len(names))
    else:
        for name in sorted(by_class):
            images = by_class[name]
            for number, image in enumerate(rng.sample(images, len(images))):
                splits[image] = share_split(number, len(images))
    counts = Counter(splits)
    if counts["train"] == len(labels):
        log.warning("no train, val and test given, and nothing held out: too few images of each class")
    else:
        log.warning(
            "no train, val and test given: held out %s, drawn at random: %s",
            "whole classes" if holds_out_classes else "images of every class",
            ", ".join(f"{split} {counts[split]}" for split in SPLITS),
        )
    # Held-out classes have no training images to find, so that their test images search each other.
    roles = {"test": "both"} if holds_out_classes else {"test": "query", "train": "index"}
    return splits, [None if label is None else roles.get(split) for label, split in zip(labels, splits, strict=True)]


def share_split(number: int, count: int) -> str:
    """The split of the item at position `number` of `count` shuffled items: the first 20 % test, the next 10 % val."""
    if number < round(TEST_SHARE * count):
        return "test"
    return "val" if number < round((TEST_SHARE + VAL_SHARE) * count) else "train"
