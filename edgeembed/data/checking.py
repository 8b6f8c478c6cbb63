"""Verifies that every image of a manifest can be decoded and that no image is in two splits."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeembed.data.manifest import Manifest
from edgeembed.device.images import ImageError, load_rgb
from edgeembed.errors import CheckFailed
from edgeembed.files import sha256_of


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Images with equal bytes.

    `leaks`: one line for each image that is in two splits, with a file of each split. The counts are of copies within
    one split: all of them, and those with another label or domain than the first file.
    """

    leaks: list[str]
    num_copies: int
    first_copy: str | None
    num_other_labels: int
    first_other_label: str | None


def find_unreadable(manifest: Manifest, *, workers: int) -> dict[str, str]:
    """The files that are missing or cannot be decoded in full, each with an error message that names the file."""

    def decoding_error(file: str) -> str | None:
        try:
            load_rgb(file)
        except ImageError as error:
            return str(error)
        return None

    files = sorted(set(manifest.files))
    with ThreadPoolExecutor(workers) as pool:
        errors = pool.map(decoding_error, files)
        return {file: error for file, error in zip(files, errors, strict=True) if error is not None}


def find_copies(manifest: Manifest, *, unreadable: Collection[str] = ()) -> Copies:
    """Compares the bytes of all readable files.

    A test image that is also a training image is a leak: its score says nothing about new images.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, file in enumerate(manifest.files):
        if file not in unreadable:
            rows_of[file].append(row)
    leaks: list[str] = []
    copies: list[str] = []
    other_labels: list[str] = []
    # Sorted, so that the first file of a group does not depend on the order of the rows.
    for files in _group_by_content(sorted(rows_of)):
        rows = [row for file in files for row in rows_of[file]]
        first_row_of: dict[str, int] = {}  # by split
        for row in rows:
            first_row_of.setdefault(manifest.split[row], row)
        if len(first_row_of) > 1:
            paths = [f"{manifest.path[row]} ({split})" for split, row in sorted(first_row_of.items())]
            leaks.append(f"the same image in {' and '.join(sorted(first_row_of))}: {' = '.join(paths)}")
        for split, first in first_row_of.items():
            in_split = [row for row in rows if manifest.split[row] == split]
            # One file in several rows, for example with two labels, is not a copy of itself.
            distinct_paths = list(dict.fromkeys(manifest.path[row] for row in in_split))
            copies += [f"{path} = {distinct_paths[0]}" for path in distinct_paths[1:]]
            other_labels += [
                f"{manifest.path[row]} is {_class(manifest, row)}, {manifest.path[first]} is {_class(manifest, first)}"
                for row in in_split
                if manifest.class_of(row) != manifest.class_of(first)
            ]
    return Copies(
        leaks=leaks,
        num_copies=len(copies),
        first_copy=copies[0] if copies else None,
        num_other_labels=len(other_labels),
        first_other_label=other_labels[0] if other_labels else None,
    )


def _class(manifest: Manifest, row: int) -> str:
    domain, label = manifest.class_of(row)
    return f"unlabelled in domain {domain!r}" if label is None else f"{label!r} in domain {domain!r}"


def _group_by_content(files: list[str]) -> Iterator[list[str]]:
    """Groups of files with equal bytes, a file without a copy alone; only files of equal size are read."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for file in files:
        if os.path.isfile(file):
            by_size[os.path.getsize(file)].append(file)
    for same_size in by_size.values():
        if len(same_size) == 1:
            yield same_size
            continue
        by_digest: dict[str, list[str]] = defaultdict(list)
        for file in same_size:
            digest = _digest(file)
            if digest is not None:
                by_digest[digest].append(file)
        yield from by_digest.values()


def _digest(file: str) -> str | None:
    try:
        return sha256_of(file)
    except OSError:  # `find_unreadable` reports this file
        return None


def drop_unreadable(manifest: Manifest, unreadable: Mapping[str, str]) -> tuple[Manifest, str]:
    """The rows whose file can be read, and a text that counts the missing and the unreadable ones.

    Raises CheckFailed where no row is left.
    """
    kept = [row for row, file in enumerate(manifest.files) if file not in unreadable]
    if not kept:
        first = next(iter(unreadable.values()))
        raise CheckFailed(f"none of {len(manifest)} images can be read, first {first} ({manifest.origin})")
    counts = Counter(
        "unreadable" if Path(file).exists() else "missing" for file in manifest.files if file in unreadable
    )
    text = ", ".join(f"{counts[reason]} {reason}" for reason in ("missing", "unreadable"))
    return manifest.take(np.array(kept, dtype=np.int64)), text
