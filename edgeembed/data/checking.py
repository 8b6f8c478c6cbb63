"""Verifies that every image of a manifest is one, and that no image is in two splits."""

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
    """Images of the same bytes. `leaks` has one line for each image in two splits, naming a file of each; the others
    are within a split: copies of another file, and of those the ones with another label or domain.
    """

    leaks: list[str]
    num_copies: int
    first_copy: str | None
    num_other_labels: int
    first_other_label: str | None


def unreadable(manifest: Manifest, *, workers: int) -> dict[str, str]:
    """Why, for each distinct file that is missing or cannot be decoded in full; the reason names the file."""

    def reason(file: str) -> str | None:
        try:
            load_rgb(file)
        except ImageError as error:
            return str(error)
        return None

    files = sorted(set(manifest.files))
    with ThreadPoolExecutor(workers) as pool:
        return {file: why for file, why in zip(files, pool.map(reason, files), strict=True) if why is not None}


def find_copies(manifest: Manifest, *, bad: Collection[str] = ()) -> Copies:
    """Compares the bytes of all files but the `bad` ones: a query that was trained on tests nothing."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, file in enumerate(manifest.files):
        if file not in bad:
            rows_of[file].append(row)
    leaks: list[str] = []
    copies: list[str] = []
    other_labels: list[str] = []
    for files in _same_bytes(sorted(rows_of)):
        rows = [row for file in files for row in rows_of[file]]
        first_of: dict[str, int] = {}
        for row in rows:
            first_of.setdefault(manifest.split[row], row)
        if len(first_of) > 1:
            named = [f"{manifest.path[row]} ({split})" for split, row in sorted(first_of.items())]
            leaks.append(f"the same image in {' and '.join(sorted(first_of))}: {' = '.join(named)}")
        for split, first in first_of.items():
            inside = [row for row in rows if manifest.split[row] == split]
            named_files = list(dict.fromkeys(manifest.path[row] for row in inside))
            copies += [f"{name} = {named_files[0]}" for name in named_files[1:]]
            other_labels += [
                f"{manifest.path[row]} is {_class(manifest, row)}, {manifest.path[first]} is {_class(manifest, first)}"
                for row in inside
                if (manifest.domain[row], manifest.label[row]) != (manifest.domain[first], manifest.label[first])
            ]
    return Copies(
        leaks=leaks,
        num_copies=len(copies),
        first_copy=copies[0] if copies else None,
        num_other_labels=len(other_labels),
        first_other_label=other_labels[0] if other_labels else None,
    )


def _class(manifest: Manifest, row: int) -> str:
    label, domain = manifest.label[row], manifest.domain[row]
    return f"unlabelled in domain {domain!r}" if label is None else f"{label!r} in domain {domain!r}"


def _same_bytes(files: list[str]) -> Iterator[list[str]]:
    """Groups of files with the same bytes, single ones too; only files of one size are read."""
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
    except OSError:  # named by `unreadable`
        return None


def without(manifest: Manifest, bad: Mapping[str, str]) -> tuple[Manifest, str]:
    """The rows whose file can be read, and in words how many of the others were missing or unreadable.

    Raises CheckFailed where no row is left.
    """
    kept = [row for row, file in enumerate(manifest.files) if file not in bad]
    if not kept:
        first = next(iter(bad.values()))
        raise CheckFailed(f"none of {len(manifest)} images can be read, first {first} ({manifest.origin})")
    counts = Counter("unreadable" if Path(file).exists() else "missing" for file in manifest.files if file in bad)
    counted = ", ".join(f"{counts[reason]} {reason}" for reason in ("missing", "unreadable"))
    return manifest.take(np.array(kept, dtype=np.int64)), counted
