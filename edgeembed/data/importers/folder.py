"""A person's own images: one folder a class."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from pathlib import Path

from edgeembed.data.manifest import SPLITS, Manifest, ManifestRow, build_manifest
from edgeembed.errors import UserError
from edgeembed.images import find_images

log = logging.getLogger(__name__)

MANY_CLASSES = 50
TEST_SHARE, VAL_SHARE = 0.2, 0.1
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def import_folder(root: Path, *, seed: int = 0) -> Manifest:
    """Reads ROOT/class/... or ROOT/split/class/...; images directly in ROOT are unlabelled training images.

    Without split folders the split is drawn: with 50 classes and more, whole classes are held out for val and
    test, so that retrieval is measured on things never trained on; with fewer, images of every class are.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    files = find_images(root)
    if not files:
        raise UserError(f"{root}: holds no images")
    top = {path.relative_to(root).parts[0] for path in files}
    split_already = top <= set(SPLIT_NAMES)
    rows = [split_row(root, path) for path in files] if split_already else draw_split(root, files, seed)
    return build_manifest(root.resolve(), rows, source=str(root))


def split_row(root: Path, path: Path) -> ManifestRow:
    split, *folders, _name = path.relative_to(root).parts
    split = SPLIT_NAMES[split]
    label = "/".join(folders) or None
    role = {"train": None, "val": None, "test": "both"}[split]
    return ManifestRow(
        path=path.relative_to(root).as_posix(), label=label, domain=root.resolve().name, split=split, role=role
    )


def draw_split(root: Path, files: list[Path], seed: int) -> list[ManifestRow]:
    by_class: dict[str | None, list[Path]] = defaultdict(list)
    for path in files:
        by_class["/".join(path.relative_to(root).parts[:-1]) or None].append(path)
    labels = sorted(label for label in by_class if label is not None)
    draw = random.Random(seed)
    split_of: dict[Path, str] = dict.fromkeys(by_class.get(None, []), "train")
    by_whole_class = len(labels) >= MANY_CLASSES
    if by_whole_class:
        shuffled = draw.sample(labels, len(labels))
        for number, name in enumerate(shuffled):
            for path in by_class[name]:
                split_of[path] = share_split(number, len(labels))
    else:
        for name in labels:
            shuffled_files = draw.sample(by_class[name], len(by_class[name]))
            for number, path in enumerate(shuffled_files):
                split_of[path] = share_split(number, len(shuffled_files))
    held_out = "whole classes" if by_whole_class else "images of every class"
    counts = {split: sum(value == split for value in split_of.values()) for split in SPLITS}
    log.warning("no train/val/test folders: held out %s: %s images", held_out, counts)
    roles = {"test": "both"} if by_whole_class else {"test": "query", "train": "index"}
    rows = []
    for path in files:
        relative, split = path.relative_to(root), split_of[path]
        label = "/".join(relative.parts[:-1]) or None
        role = None if label is None else roles.get(split)
        rows.append(
            ManifestRow(path=relative.as_posix(), label=label, domain=root.resolve().name, split=split, role=role)
        )
    return rows


def share_split(number: int, count: int) -> str:
    """The first fifth is test, the next tenth val; at least two of a set of three or more are left to train."""
    if number < round(TEST_SHARE * count):
        return "test"
    return "val" if number < round((TEST_SHARE + VAL_SHARE) * count) else "train"
