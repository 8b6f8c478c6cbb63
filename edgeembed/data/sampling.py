"""Joins manifests, moves a share to val and balances training classes.

The 2nd place of GUIE 2022 balanced with a cap of 100 images, a minimum of 3 and resampling to 20.
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
from edgeembed.data.path_matching import same_path
from edgeembed.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Counts of the labelled training rows after `prepare`, and of the unlabelled ones.

    Training sees `images` rows in `visits` visits an epoch. It does not see rows over the cap or of dropped classes.
    """

    classes: int
    classes_dropped: int
    images: int
    visits: int
    images_over_cap: int
    unlabelled: int
    moved_to_val: int


def join(manifests: Sequence[Manifest]) -> Manifest:
    """One manifest of several. Duplicate rows are merged into one with the largest `repeat`, and counted in the log.

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
    image = [same_path(path) for path in joined.path]
    for first, second in itertools.combinations(SPLITS, 2):
        both = {image[row] for row in joined.rows(first)} & {image[row] for row in joined.rows(second)}
        if both:
            raise UserError(
                f"{len(both)} images stand in {first} and in {second}, first {min(both)}: remove them from one"
            )
    unique = merge_equal_rows(joined.with_repeat(repeat), max)
    if len(unique) < len(joined):
        log.warning("%d duplicate rows are left out", len(joined) - len(unique))
    labels_of: dict[str, set[object]] = defaultdict(set)
    for path, domain, label in zip(unique.path, unique.domain, unique.label, strict=True):
        labels_of[same_path(path)].add((domain, label))
    several = [path for path, labels in labels_of.items() if len(labels) > 1]
    if several:
        log.warning("%d images have more than one label, first %s", len(several), min(several))
    return unique


def resample(rows: list[int], *, cap: int | None, repeat_to: int, draw: random.Random) -> list[int]:
    """The rows of one class: at most `cap`, drawn at random, repeated up to `repeat_to` where they are fewer."""
    if cap is not None and len(rows) > cap:
        rows = sorted(draw.sample(rows, cap))
    copies, rest = divmod(max(repeat_to, len(rows)), len(rows))
    return rows * copies + draw.sample(rows, rest)


def prepare(
    manifests: Sequence[Manifest], *, cap: int, minimum: int, resample_to: int, val_share: float = 0.0, seed: int = 0
) -> tuple[Manifest, Balance]:
    """Joins manifests, moves a share of each class to val, and balances train by `repeat`; no image is removed.

    Of a class, training visits at most `cap` images, drawn at random. Fewer than `resample_to` are repeated up to it. A
    class of fewer than `minimum` gets `repeat` 0. The `repeat` of labelled training rows is set anew, except that a 0
    stays 0; other rows keep theirs. Raises UserError where no class is left.
    """
    joined, moved = move_to_val(join(manifests), val_share, seed=seed)
    by_class: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in joined.training_rows().tolist():
        if (label := joined.label[row]) is not None:
            by_class[joined.domain[row], label].append(row)
    draw = random.Random(seed)
    repeat = joined.visits(np.arange(len(joined)))
    size_of = Counter((joined.domain[row], joined.label[row]) for row in joined.rows("train").tolist())
    over_cap = dropped = 0
    for name, rows in sorted(by_class.items()):
        repeat[rows] = 0
        if size_of[name] < minimum:  # of all its images, also those that an earlier cap left out
            dropped += 1
            continue
        over_cap += max(0, len(rows) - cap)
        for row, count in Counter(resample(rows, cap=cap, repeat_to=resample_to, draw=draw)).items():
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
    """Moves a random share of the training images of each class to val; returns the manifest and the number moved.

    Of n images, round(share * n) are moved, and at least one stays. An image with several labels is moved with all its
    rows and counts in each of its classes. Rows keep their role, so the index of test stays whole. Raises UserError
    where `share` is below 0, or 1 and above.
    """
    if not 0 <= share < 1:
        raise UserError(f"--val-share is {share}: choose a share from 0 up to, not including, 1, such as 0.1")
    image_of = [same_path(os.path.normpath(file)) for file in manifest.files]
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


def _draw_for_val(images_of: Mapping[tuple[str, str], set[str]], share: float, draw: random.Random) -> set[str]:
    """The images to move to val, given the images of each class."""
    classes_of: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, images in images_of.items():
        for image in images:
            classes_of[image].append(name)
    left = {name: len(images) for name, images in images_of.items()}
    moved: set[str] = set()
    for name, images in sorted(images_of.items()):
        num_train = len(images) - round(share * len(images))
        for image in draw.sample(sorted(images), len(images)):
            # An image with several labels may be the last training image of another class.
            if left[name] > num_train and image not in moved and all(left[other] > 1 for other in classes_of[image]):
                moved.add(image)
                for other in classes_of[image]:
                    left[other] -= 1
    return moved
