"""Joins manifests, holds out val and balances training classes, as the 2nd place of GUIE 2022 did (100, 3, 20)."""

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
from edgeembed.data.spelling import same_path
from edgeembed.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Balance:
    """What preparing did to the labelled rows of the training split.

    `images` are trained on, in `visits` an epoch; rows over the cap and those of dropped classes are not.
    """

    classes: int
    classes_dropped: int
    images: int
    visits: int
    images_over_cap: int
    unlabelled: int
    moved_to_val: int


def join(manifests: Sequence[Manifest]) -> Manifest:
    """One manifest of several; rows that say the same of an image are taken once, and counted in the log.

    Such a row has the largest `repeat` of them. Raises UserError for an image that stands in two splits (a leak).
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
        log.warning("%d rows are equal to earlier ones and are left out", len(joined) - len(unique))
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
    """Joins, moves a share of each class to val and balances the others by `repeat`: every row stays.

    Of a class, `cap` images are drawn; fewer than `resample_to` are repeated up to it; a class of fewer than `minimum`
    is not trained on. `repeat` is set anew: of what it says in the inputs only a 0 counts, which stays 0. Unlabelled
    rows stay as they are.
    """
    joined, moved = move_to_val(join(manifests), val_share, seed=seed)
    by_class: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in joined.training_rows().tolist():
        if (label := joined.label[row]) is not None:
            by_class[joined.domain[row], label].append(row)
    draw = random.Random(seed)
    repeat = joined.visits(np.arange(len(joined)))
    over_cap = dropped = 0
    for _, rows in sorted(by_class.items()):
        repeat[rows] = 0
        if len(rows) < minimum:
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
    """Moves a drawn share of the training images of each class to val; returns the manifest and their number.

    Of n images, round(share * n) are moved and one at least stays. An image with several labels is moved with all its
    rows and counts in each of its classes. Rows keep their role: those of the index of test stay in it. Raises
    UserError where `share` is not from 0 to 1.
    """
    if not 0 <= share < 1:
        raise UserError(f"--val-share is {share}: expected 0 or more, and less than 1, such as 0.1")
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
    """Images to move to val, given those of each class."""
    classes_of: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, images in images_of.items():
        for image in images:
            classes_of[image].append(name)
    left = {name: len(images) for name, images in images_of.items()}
    moved: set[str] = set()
    for name, images in sorted(images_of.items()):
        kept = len(images) - round(share * len(images))
        for image in draw.sample(sorted(images), len(images)):
            # An image of several classes may be the last that one of the others has.
            if left[name] > kept and image not in moved and all(left[other] > 1 for other in classes_of[image]):
                moved.add(image)
                for other in classes_of[image]:
                    left[other] -= 1
    return moved
