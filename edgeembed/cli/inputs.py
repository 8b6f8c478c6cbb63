"""Finds the image files, and their labels, that command-line arguments name: files, folders and tables."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgeembed.data.tables import TABLE_SUFFIXES, clean_name, read_table
from edgeembed.device.image_files import list_images
from edgeembed.errors import UserError
from edgeembed.texts import printable

log = logging.getLogger(__name__)


def gather_images(paths: Sequence[Path]) -> list[str]:
    """Absolute paths of all images, each once, in the order given. Raises UserError for an argument without any."""
    # A dict as an ordered set.
    found: dict[str, None] = {}
    for path in paths:
        found.update(dict.fromkeys(os.path.abspath(file) for file in _images_of(path)))
    return list(found)


def _images_of(path: Path) -> Iterable[str | Path]:
    name = printable(str(path))
    if path.is_dir():
        listing = list_images(path)
        if not listing.files:
            raise UserError(f"{name}: holds no images{f': {listing.left_out}' if listing.left_out.counts else ''}")
        listing.log_left_out()
        return listing.files
    if not path.exists():
        raise UserError(f"{name}: no such file or folder")
    if path.suffix.lower() in TABLE_SUFFIXES:
        return _images_of_table(path)
    return [path]


def _images_of_table(path: Path) -> list[str]:
    """The images in the `path` column of a table, which need not be a manifest; only Parquet needs pyarrow."""
    table = read_table(path, ("path",))
    paths = table.paths()
    if not paths:
        raise UserError(f"{printable(str(path))}: holds no images")
    files = [os.path.join(table.root, file) for file in paths]
    # Single missing images are reported when they are decoded; if all are missing, the folder is wrong.
    if not any(map(os.path.exists, files)):
        raise UserError(
            f"{printable(str(path))}: none of {len(files)} images exist, first {printable(paths[0])} (paths are "
            f"relative to {printable(str(table.root))}, {table.root_name}): move the images or correct the paths"
        )
    return files


def read_labels(paths: Sequence[Path]) -> dict[str, str]:
    """The labels of images in tables, by the absolute path that `gather_images` returns."""
    labels: dict[str, str] = {}
    first_labels: dict[str, str] = {}  # of images with several labels
    for path in paths:
        # A folder may be called `photos.csv`.
        if path.suffix.lower() not in TABLE_SUFFIXES or path.is_dir():
            continue
        table = read_table(path, ("path", "label"))
        files = (os.path.abspath(os.path.join(table.root, file)) for file in table.paths())
        column = map(clean_name, table.columns.get("label", (None,) * table.num_rows))
        for file, label in zip(files, column, strict=True):
            if label is None:
                continue
            if labels.setdefault(file, label) != label:
                first_labels.setdefault(file, labels[file])
                labels[file] = label
    if first_labels:
        file, label = next(iter(first_labels.items()))
        log.warning(
            "%d images have several labels, of which the last is stored, first %s: %r and %r",
            *(len(first_labels), printable(file), label, labels[file]),
        )
    return labels
