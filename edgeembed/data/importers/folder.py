"""Imports a user's own folders of images: one folder for each class, with or without split folders."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeembed.data.importers.splits import draw_splits, parse_split
from edgeembed.data.manifest import Manifest, ManifestRow, build_manifest
from edgeembed.data.tables import clean_name
from edgeembed.device.image_files import ImageListing, list_images
from edgeembed.errors import UserError
from edgeembed.texts import is_utf8, printable

log = logging.getLogger(__name__)

NOT_UTF8 = "file or folder name that is not UTF-8, which a manifest cannot hold: rename it"
OUTSIDE = "image outside the split folders"
MAX_LISTED = 3  # folders named in a message

PathParts = tuple[str, ...]  # of a path relative to the root: its folders, then the file name


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the split folders are, if any: ROOT/train/class (`split_level` 0) or ROOT/x/train/class (1).

    All other folders form the label, except `wrapper`, a single folder around the whole data set.
    """

    split_level: int | None = None
    wrapper: str | None = None

    def split(self, parts: PathParts) -> str | None:
        """The split of an image; None without split folders, or for an image outside of them."""
        level = self.split_level
        return parse_split(parts[level]) if level is not None and len(parts) > level + 1 else None

    def label(self, parts: PathParts) -> str | None:
        """The folders that form the label, joined with slashes; None for an image without any."""
        folders = [name for level, name in enumerate(parts[:-1]) if level != self.split_level]
        return "/".join(folders[1:] if self.wrapper else folders) or None


def import_folder(root: Path, *, seed: int = 0) -> Manifest:
    """Reads ROOT/class/... or ROOT/split/class/...; images directly in ROOT or in a split folder are unlabelled.

    Where there are split folders, images outside of them are left out and counted; without any, splits are drawn at
    random. Raises UserError for folders that could be either splits or classes.
    """
    listing = list_images(root)
    relative = [file.relative_to(root).parts for file in _with_utf8_names(listing)]
    layout = find_layout(root, relative)
    if layout.split_level is None:
        kept, labels = relative, [clean_name(layout.label(parts)) for parts in relative]
        splits, roles = draw_splits(labels, seed=seed) if kept else ([], [])
    else:
        kept = [parts for parts in relative if layout.split(parts) is not None]
        for parts in relative:
            if layout.split(parts) is None:
                listing.left_out.add(OUTSIDE, "/".join(parts))
        labels = [layout.label(parts) for parts in kept]
        splits = [split for parts in kept if (split := layout.split(parts)) is not None]
        # A user's own test folder is query and index at once (leave-one-out).
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


def _with_utf8_names(listing: ImageListing) -> list[Path]:
    """The files whose path is valid UTF-8; the others are added to the listing's left-out files."""
    kept = []
    for file in listing.files:
        name = file.relative_to(listing.folder).as_posix()
        if is_utf8(name):
            kept.append(file)
        else:
            listing.left_out.add(NOT_UTF8, name)
    return kept


def find_layout(root: Path, relative: Sequence[PathParts]) -> Layout:
    """Finds the split folders by their names and contents: split folders hold class folders, class folders hold images.

    Raises UserError where a folder could be a split or a class.
    """
    holds_folders: dict[str, bool] = defaultdict(bool)
    num_images: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))  # by first and second folder
    for parts in relative:
        if len(parts) > 1:
            holds_folders[parts[0]] |= len(parts) > 2
        if len(parts) > 2:
            num_images[parts[0]][parts[1]] += 1
    splits = sorted(name for name in holds_folders if parse_split(name))
    others = sorted(name for name in holds_folders if not parse_split(name))
    if splits:
        return _layout_of_first_level(root, splits, others, holds_folders)
    # No split folders in ROOT: perhaps one level below, ROOT/x/train/class.
    parents = [name for name in others if any(map(parse_split, num_images[name]))]
    in_splits = [parts for parts in relative if len(parts) > 2 and parse_split(parts[1])]
    found_splits = {parse_split(parts[1]) for parts in in_splits}
    wrapper = parents[0] if len(parents) == 1 else None
    holds_only_splits = wrapper is not None and all(map(parse_split, num_images[wrapper]))
    # A single split name may be a class name, unless nothing else explains the folders.
    is_certain = holds_only_splits and (len(others) == 1 or any(len(parts) > 3 for parts in in_splits))
    if len(found_splits) > 1 or is_certain:
        # More than half of the images would be left out: rather an error than a wrong guess.
        if 2 * len(in_splits) < len(relative):
            raise UserError(
                f"{printable(str(root))}: {len(in_splits)} of {len(relative)} images are in split folders below "
                f"{list_folders(parents)}, the others are not: give a folder of splits as ROOT, or rename the "
                "class folders that have the name of a split"
            )
        log.warning("split folders were found below %s", list_folders(parents))
        return Layout(split_level=1, wrapper=wrapper)
    return Layout()


def _layout_of_first_level(
    root: Path, splits: Sequence[str], others: Sequence[str], holds_folders: Mapping[str, bool]
) -> Layout:
    """The layout where some folders of ROOT (`splits`) are called like splits and the `others` are not."""
    found_splits = {parse_split(name) for name in splits}
    has_classes = any(holds_folders[name] for name in splits)
    # Two different splits, nothing but split folders, or only these folders contain class folders.
    if len(found_splits) > 1 or not others or (has_classes and not any(holds_folders[name] for name in others)):
        return Layout(split_level=0)
    # A class called train, among vehicles for example: it contains images and no folders.
    if found_splits == {"train"} and not has_classes:
        log.warning("%s is read as a class, like %s beside it", list_folders(splits), list_folders(others))
        return Layout()
    raise UserError(
        f"{printable(str(root))}: {list_folders(splits)} has the name of a split, but {list_folders(others)} beside it "
        "have not: rename it where it is a class, else put all images into split folders (train, val, test)"
    )


def list_folders(names: Sequence[str]) -> str:
    """The first folder names, for a message: "a/, b/, c/ and 2 more"."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return printable(", ".join(f"{name}/" for name in names[:MAX_LISTED]) + more)
