"""Joins manifests and balances their training classes, as the 2nd place of GUIE 2022 did (100, 3, 20)."""

from __future__ import annotations

import itertools
import logging
import os
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeembed.data.manifest import COLUMNS, SPLITS, Manifest
from edgeembed.data.spelling import same_path
from edgeembed.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Balance:
    """What preparing did to the training split."""

    classes: int
    classes_dropped: int
    images: int
    images_over_cap: int
    images_repeated: int
    unlabelled: int


def join(manifests: Sequence[Manifest]) -> Manifest:
    """One manifest of several; rows that say the same of an image are taken once, and counted in the log.

    Raises UserError for an image that stands in two splits (a leak).
    """
    root = Path(os.path.commonpath([manifest.root for manifest in manifests]))
    columns: dict[str, list[str | None]] = {name: [] for name in COLUMNS}
    for manifest in manifests:
        columns["path"] += [os.path.relpath(file, root) for file in manifest.files]
        for name in COLUMNS[1:]:
            columns[name] += getattr(manifest, name)
    joined = Manifest(root=root, **{name: tuple(values) for name, values in columns.items()})  # type: ignore[arg-type]
    image = [same_path(path) for path in joined.path]
    for first, second in itertools.combinations(SPLITS, 2):
        both = {image[row] for row in joined.rows(first)} & {image[row] for row in joined.rows(second)}
        if both:
            raise UserError(
                f"{len(both)} images stand in {first} and in {second}, first {min(both)}: remove them from one"
            )
    rows = {row: number for number, row in reversed(list(enumerate(zip(image, *_others(joined), strict=True))))}
    if len(rows) < len(joined):
        twice = sorted(set(range(len(joined))) - set(rows.values()))
        log.warning("%d rows stand there twice and are taken once, first %s", len(twice), joined.path[twice[0]])
    unique = joined.take(np.array(sorted(rows.values()), dtype=np.int64))
    labels_of: dict[str, set[object]] = defaultdict(set)
    for path, domain, label in zip(unique.path, unique.domain, unique.label, strict=True):
        labels_of[same_path(path)].add((domain, label))
    several = [path for path, labels in labels_of.items() if len(labels) > 1]
    if several:
        log.warning("%d images have more than one label, first %s", len(several), min(several))
    return unique


def _others(manifest: Manifest) -> list[tuple[str | None, ...]]:
    return [getattr(manifest, name) for name in COLUMNS[1:]]


def resample(rows: list[int], *, cap: int | None, repeat_to: int, draw: random.Random) -> list[int]:
    """The rows of one class: at most `cap`, drawn at random, repeated up to `repeat_to` where they are fewer."""
    if cap is not None and len(rows) > cap:
        rows = sorted(draw.sample(rows, cap))
    copies, rest = divmod(max(repeat_to, len(rows)), len(rows))
    return rows * copies + draw.sample(rows, rest)


def prepare(
    manifests: Sequence[Manifest], *, cap: int, minimum: int, resample_to: int, seed: int = 0
) -> tuple[Manifest, Balance]:
    """Joins and balances: classes of fewer than `minimum` training images are dropped from training, `cap` images
    are drawn of larger ones, smaller ones are repeated up to `resample_to`. val, test and unlabelled rows stay.
    """
    joined = join(manifests)
    by_class: dict[tuple[str, str], list[int]] = defaultdict(list)
    others = []
    for row in range(len(joined)):
        label = joined.label[row]
        if joined.split[row] == "train" and label is not None:
            by_class[joined.domain[row], label].append(row)
        else:
            others.append(row)
    draw = random.Random(seed)
    kept: list[int] = []
    over_cap = repeated = dropped = 0
    for name in sorted(by_class):
        rows = by_class[name]
        if len(rows) < minimum:
            dropped += 1
            continue
        balanced = resample(rows, cap=cap, repeat_to=resample_to, draw=draw)
        over_cap += max(0, len(rows) - cap)
        repeated += len(balanced) - min(len(rows), cap)
        kept += balanced
    if dropped and not kept and not any(joined.split[row] == "train" for row in others):
        raise UserError(
            f"nothing is left to train on: all {dropped} classes have fewer than {minimum} training images: "
            "choose a lower minimum (--min)"
        )
    balance = Balance(
        classes=len(by_class) - dropped,
        classes_dropped=dropped,
        images=len(kept),
        images_over_cap=over_cap,
        images_repeated=repeated,
        unlabelled=sum(joined.label[row] is None for row in others if joined.split[row] == "train"),
    )
    return joined.take(np.array(kept + others, dtype=np.int64)), balance
