"""A person's own images: one folder a class, with or without split folders."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeembed.data.importers.splits import draw_splits, split_named
from edgeembed.data.manifest import Manifest, ManifestRow, build_manifest
from edgeembed.data.tables import clean
from edgeembed.device.image_files import ImageListing, list_images
from edgeembed.errors import UserError
from edgeembed.texts import is_utf8, printable

log = logging.getLogger(__name__)

NOT_UTF8 = "file or folder name that is not UTF-8, which a manifest cannot hold: rename it"
OUTSIDE = "image outside the split folders"
MOST_NAMED = 3  # folders in a message

Parts = tuple[str, ...]  # of a path below the root: the folders, then the file


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the split folders are, if there are any: ROOT/train/class (level 0) or ROOT/x/train/class (level 1).

    The label is made of all other folders; `wrapper` is the one folder around the whole set, which says nothing.
    """

    split_level: int | None = None
    wrapper: str | None = None

    def split(self, parts: Parts) -> str | None:
        level = self.split_level
        return split_named(parts[level]) if level is not None and len(parts) > level + 1 else None

    def label(self, parts: Parts) -> str | None:
        folders = [name for level, name in enumerate(parts[:-1]) if level != self.split_level]
        return "/".join(folders[1:] if self.wrapper else folders) or None


def import_folder(root: Path, *, seed: int = 0) -> Manifest:
    """Reads ROOT/class/... or ROOT/split/class/...; images directly in ROOT or in a split folder are unlabelled.

    Where there are split folders, images outside of them are left out and counted. Without any, splits are drawn.
    Raises UserError for folders that could be meant in either way.
    """
    listing = list_images(root)
    relative = [file.relative_to(root).parts for file in _in_utf8(listing)]
    layout = find_layout(root, relative)
    if layout.split_level is None:
        kept, labels = relative, [clean(layout.label(parts)) for parts in relative]
        splits, roles = draw_splits(labels, seed=seed) if kept else ([], [])
    else:
        kept = [parts for parts in relative if layout.split(parts) is not None]
        for parts in relative:
            if layout.split(parts) is None:
                listing.left_out.add(OUTSIDE, "/".join(parts))
        labels = [layout.label(parts) for parts in kept]
        splits = [split for parts in kept if (split := layout.split(parts)) is not None]
        roles = ["both" if split == "test" else None for split in splits]
    if not kept:
        raise UserError(
            f"{printable(str(root))}: holds no images{f': {listing.left_out}' if listing.left_out.counts else ''}"
        )
    listing.log_left_out()
    domain = printable(root.resolve().name) or "images"
    rows = [
        ManifestRow(path="/".join(parts), label=label, domain=domain, split=split, role=role)
        for parts, label, split, role in zip(kept, labels, splits, roles, strict=True)
    ]
    return build_manifest(root.resolve(), rows, source=printable(str(root)))


def _in_utf8(listing: ImageListing) -> list[Path]:
    kept = []
    for file in listing.files:
        name = file.relative_to(listing.folder).as_posix()
        if is_utf8(name):
            kept.append(file)
        else:
            listing.left_out.add(NOT_UTF8, name)
    return kept


def find_layout(root: Path, relative: Sequence[Parts]) -> Layout:
    """Decides by names and by what the folders hold: split folders hold class folders, class folders hold images."""
    holds_folders: dict[str, bool] = defaultdict(bool)
    below: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))  # images by first and second folder
    for parts in relative:
        if len(parts) > 1:
            holds_folders[parts[0]] |= len(parts) > 2
        if len(parts) > 2:
            below[parts[0]][parts[1]] += 1
    splits = sorted(name for name in holds_folders if split_named(name))
    others = sorted(name for name in holds_folders if not split_named(name))
    if splits:
        return _first_level(root, splits, others, holds_folders)
    holders = [name for name in others if any(map(split_named, below[name]))]
    inside = [parts for parts in relative if len(parts) > 2 and split_named(parts[1])]
    kinds = {split_named(parts[1]) for parts in inside}
    wrapper = holders[0] if len(holders) == 1 else None
    certain = wrapper is not None and all(map(split_named, below[wrapper]))  # of one split, as there is no other
    if len(kinds) > 1 or (certain and (len(others) == 1 or any(len(parts) > 3 for parts in inside))):
        if 2 * len(inside) < len(relative):
            raise UserError(
                f"{printable(str(root))}: {len(inside)} of {len(relative)} images lie in split folders below "
                f"{named(holders)}, the others do not: give a folder of splits as ROOT, or rename those of classes"
            )
        log.warning("split folders were found below %s", named(holders))
        return Layout(split_level=1, wrapper=wrapper)
    return Layout()


def _first_level(root: Path, splits: Sequence[str], others: Sequence[str], holds_folders: Mapping[str, bool]) -> Layout:
    kinds = {split_named(name) for name in splits}
    has_classes = any(holds_folders[name] for name in splits)
    if len(kinds) > 1 or not others or (has_classes and not any(holds_folders[name] for name in others)):
        return Layout(split_level=0)
    if kinds == {"train"} and not has_classes:
        log.warning("%s is taken for a class, as %s beside it are", named(splits), named(others))
        return Layout()
    raise UserError(
        f"{printable(str(root))}: {named(splits)} is called like a split, but {named(others)} beside it are not: "
        "rename it where it is a class, else put all images into split folders (train, val, test)"
    )


def named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return printable(", ".join(f"{name}/" for name in names[:MOST_NAMED]) + more)
