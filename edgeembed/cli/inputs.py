"""What a person names on the command line, as image files: files, folders and manifests."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgeembed.cli.streams import read_as_utf8
from edgeembed.errors import UserError
from edgeembed.images import IMAGE_SUFFIXES, find_images

CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f]")


def gather_images(paths: Sequence[Path]) -> list[str]:
    """Absolute paths of every image meant, each once, in the order given. Raises UserError for a path without any."""
    found: dict[str, None] = {}
    for path in paths:
        files = [os.path.abspath(file) for file in _images_of(path)]
        if not files:
            raise UserError(f"{path}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        found.update(dict.fromkeys(files))
    return list(found)


def printable(text: str) -> str:
    """A path or message on one line: a line end appears as `\\n`, a byte of a file name that is not UTF-8 as `\\xe9`.

    JSON needs no such thing: it has escapes of its own, from which a program gets the very name back.
    """
    shown = CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
    return read_as_utf8(shown, other_bytes="backslashreplace")


def _images_of(path: Path) -> Iterable[str | Path]:
    if path.is_dir():
        return find_images(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.suffix == ".csv":
        return _images_of_csv(path)
    if path.suffix == ".parquet":
        from edgeembed.data.manifest import read_manifest  # needs pyarrow

        return read_manifest(path).files
    return [path]


def _images_of_csv(path: Path) -> list[Path]:
    """The `path` column, relative to the table's folder; read without pyarrow, which a device need not have."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if "path" not in (rows.fieldnames or []):
                raise UserError(f"{path}: lacks column 'path'")
            return [path.parent / row["path"] for row in rows if row["path"]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable .csv table ({error})") from None
