"""Joins manifests, moves a share of the training images to val and balances the training classes.

The 2nd place of Google Universal Image Embedding 2022 balanced with at most 100 images a class, at least 3, and small
classes repeated up to 20.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeembed.data.manifest import COLUMNS, SPLITS, Manifest, merge_equal_rows
from edgeembed.data.path_matching import path_key
from edgeembed.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Balance:
    """What `prepare` did to the labelled training rows, in counts, and the number of unlabelled training rows.

    An epoch makes `visits` visits to `images` rows. Rows over the cap and rows of dropped classes are not trained on.
    """

    classes: int
    classes_dropped: int
    images: int
    visits: int
    images_over_cap: int
    unlabelled: int
    moved_to_val: int


def join(manifests: Sequence[Manifest]) -> Manifest:
    """Joins several manifests into one. Duplicate rows are merged, with the largest `repeat` of them, and logged.

    Raises UserError for an image that is in two splits (a leak).
    """
    root = Path(os.path.commonpath([manifest.root for manifest in manifests]))
    columns: dict[str, list[str | None]] = {name: [] for name in COLUMNS}
    for manifest in manifests:
        columns["path"] += [os.path.relpath(file, root) for file in manifest.files]
        for name in COLUMNS[1:]:
            columns[name] += getattr(manifest, name)
    repeat = [count for manifest in manifests for count in manifest.visits(np.arange(len(manifest))).tolist()]
    joined = Manifest(root=root, **{name: tuple(values) for name, values in columns.items()})  # type: ignore[arg-type]
    image_keys = [path_key(path) for path in joined.path]
    for first, second in itertools.combinations(SPLITS, 2):
        both = {image_keys[row] for row in joined.rows(first)} & {image_keys[row] for row in joined.rows(second)}
        if both:
            raise UserError(
                f"{len(both)} images are in split {first} and in split {second}, first {min(both)}: "
                "remove them from one"
            )
    # The largest and not the sum: a row in two of the manifests is one image, not twice the weight.
    unique = merge_equal_rows(joined.with_repeat(repeat), max)
    if len(unique) < len(joined):
        log.warning("%d duplicate rows were merged", len(joined) - len(unique))
    labels_of: dict[str, set[object]] = defaultdict(set)
    for path, domain, label in zip(unique.path, unique.domain, unique.label, strict=True):
        labels_of[path_key(path)].add((domain, label))
    ambiguous = [path for path, labels in labels_of.items() if len(labels) > 1]
    if ambiguous:
        log.warning("%d images have more than one label, first %s", len(ambiguous), min(ambiguous))
    return unique


def resample(rows: list[int], *, cap: int | None, repeat_to: int, rng: random.Random) -> list[int]:
    """Samples the rows of one class: at most `cap`, drawn at random; fewer than `repeat_to` are repeated up to it."""
    if cap is not None and len(rows) > cap:
        rows = sorted(rng.sample(rows, cap))
    # Whole rounds over all images, then a random rest: visits differ by one at most.
    copies, rest = divmod(max(repeat_to, len(rows)), len(rows))
    return rows * copies + rng.sample(rows, rest)


def prepare(
    manifests: Sequence[Manifest], *, cap: int, minimum: int, resample_to: int, val_share: float = 0.0, seed: int = 0
) -> tuple[Manifest, Balance]:
    """Joins manifests, moves a share of each class to val and balances training by `repeat`; no row is removed.

    Training visits at most `cap` images of a class, drawn at random; fewer than `resample_to` are repeated up to it; a
    class with fewer than `minimum` images gets `repeat` 0. The `repeat` of labelled training rows is replaced, except
    that a 0 stays 0; other rows keep theirs. Raises UserError where no class is left.
    """
    joined, moved = move_to_val(join(manifests), val_share, seed=seed)
    # Rows with `repeat` 0 stay out, so that preparing a prepared manifest again keeps its choice of images.
    by_class: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in joined.training_rows().tolist():
        if (label := joined.label[row]) is not None:
            by_class[joined.domain[row], label].append(row)
    rng = random.Random(seed)
    repeat = joined.visits(np.arange(len(joined)))
    # The minimum counts all images of a class, also those that an earlier cap set to 0.
    class_size = Counter(joined.class_of(row) for row in joined.rows("train").tolist())
    over_cap = dropped = 0
    # Sorted, because all classes draw from one generator.
    for name, rows in sorted(by_class.items()):
        repeat[rows] = 0
        if class_size[name] < minimum:
            dropped += 1
            continue
        over_cap += max(0, len(rows) - cap)
        for row, count in Counter(resample(rows, cap=cap, repeat_to=resample_to, rng=rng)).items():
            repeat[row] = count
    balanced = joined.with_repeat(repeat.tolist())
    trained = balanced.training_rows()
    if dropped and not trained.size:
        raise UserError(
            f"nothing is left to train on: all {dropped} classes have fewer than {minimum} training images: "
            "choose a lower minimum (--min)"
        )
    labelled = trained[[balanced.label[row] is not None for row in trained]]
    balance = Balance(
        classes=len(by_class) - dropped,
        classes_dropped=dropped,
        images=labelled.size,
        visits=int(balanced.visits(labelled).sum()),
        images_over_cap=over_cap,
        unlabelled=trained.size - labelled.size,
        moved_to_val=moved,
    )
    return balanced, balance


def move_to_val(manifest: Manifest, share: float, *, seed: int = 0) -> tuple[Manifest, int]:
    """Moves a random share of the training images of each class to val; returns the manifest and the number of them.

    Of n images, round(share * n) are moved; at least one stays. An image with several labels moves with all its rows
    and counts in each of its classes. Rows keep their role, so the test index does not change. Raises UserError unless
    0 <= share < 1.
    """
    if not 0 <= share < 1:
        raise UserError(f"--val-share is {share}: choose a share from 0 up to, not including, 1, such as 0.1")
    image_of = [path_key(os.path.normpath(file)) for file in manifest.files]
    images_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in manifest.training_rows().tolist():
        if (label := manifest.label[row]) is not None:
            images_of[manifest.domain[row], label].add(image_of[row])
    moved = _draw_for_val(images_of, share, random.Random(seed))
    split = tuple(
        "val" if split == "train" and image in moved else split
        for split, image in zip(manifest.split, image_of, strict=True)
    )
    if share:
        before = int(manifest.rows("val").size)
        log.info("moved %d training images to val, which held %d images before", len(moved), before)
    return replace(manifest, split=split), len(moved)


def _draw_for_val(images_of: Mapping[tuple[str, str], set[str]], share: float, rng: random.Random) -> set[str]:
    """Draws the images to move to val, given the images of each class."""
    classes_of: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, images in images_of.items():
        for image in images:
            classes_of[image].append(name)
    num_left = {name: len(images) for name, images in images_of.items()}
    moved: set[str] = set()
    for name, images in sorted(images_of.items()):
        num_train = len(images) - round(share * len(images))
        for image in rng.sample(sorted(images), len(images)):
            # An image with several labels may be the last training image of another class.
            keeps_one = all(num_left[other] > 1 for other in classes_of[image])
            if num_left[name] > num_train and image not in moved and keeps_one:
                moved.add(image)
                for other in classes_of[image]:
                    num_left[other] -= 1
    return moved
