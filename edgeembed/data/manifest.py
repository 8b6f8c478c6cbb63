"""Reads and writes manifests, the tables that describe every data set: Parquet, or CSV with the same header.

Columns: `path`; `label`, unique within its `domain`; `split` (train, val, test); `role` (query, index, both); and the
optional `repeat`, the number of times that a training epoch visits the row.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edgeembed.data.image_versions import images_id
from edgeembed.data.path_matching import path_key
from edgeembed.data.protocol import plan_test, plan_val
from edgeembed.data.tables import clean_name, empty_value, is_text_table, read_table
from edgeembed.errors import UserError, unknown_choice
from edgeembed.files import whole_file
from edgeembed.texts import is_utf8, printable

log = logging.getLogger(__name__)

COLUMNS = ("path", "label", "domain", "split", "role")
REPEAT = "repeat"  # the optional column
MAX_REPEAT = 1_000_000  # a larger value is a mistake, and the visits of an epoch would not fit in memory
FINGERPRINT_IMAGES = 20_000  # the fingerprint reads the bytes of at most this many images
SPLITS = ("train", "val", "test")
ROLES = ("query", "index", "both")

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One image of a manifest. `label` is None where the image is unlabelled.

    `repeat`: how often a training epoch visits the row; 0: never.
    """

    path: str
    label: str | None
    domain: str
    split: str
    role: str | None = None
    repeat: int = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A data set as columns of equal length; paths are absolute or relative to `root`.

    A visit is one use of an image in a training epoch, with a view of its own. `repeat` is the number of visits of each
    row; None: one each. Evaluation uses every row once, whatever its `repeat`.
    """

    root: Path
    path: tuple[str, ...]
    label: tuple[str | None, ...]
    domain: tuple[str, ...]
    split: tuple[str, ...]
    role: tuple[str | None, ...]
    repeat: tuple[int, ...] | None = None
    source: Path | None = None  # the file that the manifest was read from
    root_name: str = "the root of the manifest"  # used in messages: where `root` comes from

    def __len__(self) -> int:
        return len(self.path)

    @functools.cached_property
    def files(self) -> tuple[str, ...]:
        """The path of each image, joined with `root`."""
        root = str(self.root)
        return tuple(os.path.join(root, path) for path in self.path)

    @functools.cached_property
    def image_number(self) -> Rows:
        """The image of each row, as a number: rows that name the same file, however the path is spelled, share it."""
        first_of: dict[str, int] = {}
        paths = (path_key(os.path.normpath(file)) for file in self.files)
        return np.array([first_of.setdefault(path, row) for row, path in enumerate(paths)], dtype=np.int64)

    @property
    def origin(self) -> str:
        """A clause for messages: which folder paths are relative to."""
        return f"paths are relative to {self.root}, {self.root_name}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the rows and of the bytes of their images, but not of the root folder and file times.

        Above FINGERPRINT_IMAGES images, it covers the bytes of an evenly spaced sample of that size.
        """
        digest = hashlib.sha256()
        # Separators that no cell contains, so that different tables never give the same bytes.
        columns = (getattr(self, name) for name in COLUMNS[1:])
        for path, *values, repeat in zip(self.path, *columns, self.visits(np.arange(len(self))), strict=True):
            text = "\x1f".join([path_key(path), *(value or "" for value in values), str(repeat)])
            digest.update(text.encode() + b"\x1e")
        files = list(dict.fromkeys(self.files))
        if len(files) > FINGERPRINT_IMAGES:
            files = [files[at] for at in np.linspace(0, len(files) - 1, FINGERPRINT_IMAGES).round().astype(int)]
        digest.update(images_id(files, by="content").encode())
        return digest.hexdigest()[:24]

    def fingerprint_of(self, rows: Rows) -> str:
        """The fingerprint of a selection of rows, without their `repeat`."""
        return replace(self.take(rows), repeat=None).fingerprint

    @functools.cached_property
    def training_fingerprint(self) -> str:
        """The fingerprint of the training rows in their order; val, test and the values of `repeat` do not count.

        Stored targets depend on nothing else of the manifest.
        """
        return self.fingerprint_of(self.training_rows())

    def rows(self, split: str) -> Rows:
        """The rows of a split, ascending."""
        return np.flatnonzero(np.array(self.split) == split)

    def visits(self, rows: Rows) -> Rows:
        """How often a training epoch visits each of these rows, (len(rows),)."""
        if self.repeat is None:
            return np.ones(len(rows), dtype=np.int64)
        return np.array(self.repeat, dtype=np.int64)[rows]

    def training_rows(self) -> Rows:
        """The rows of the train split whose `repeat` is above 0, each once."""
        rows = self.rows("train")
        return rows[self.visits(rows) > 0]

    def take(self, rows: Rows) -> Manifest:
        """A manifest of these rows only, in this order; a row may occur several times."""
        columns: dict[str, Any] = {name: tuple(getattr(self, name)[row] for row in rows) for name in COLUMNS}
        repeat = None if self.repeat is None else _none_if_all_one(self.repeat[row] for row in rows)
        return Manifest(root=self.root, repeat=repeat, **columns)

    def with_repeat(self, repeat: Iterable[int]) -> Manifest:
        """A copy with another `repeat`."""
        return replace(self, repeat=_none_if_all_one(repeat))

    def class_of(self, row: int) -> tuple[str, str | None]:
        """Domain and label: two images match in retrieval where both are equal."""
        return self.domain[row], self.label[row]

    def class_names(self, rows: Rows) -> list[tuple[str, str]]:
        """The distinct (domain, label) pairs of the labelled rows, sorted."""
        return sorted({(self.domain[row], label) for row in rows if (label := self.label[row]) is not None})

    def require_files(self, limit: int = 200_000) -> None:
        """Raises UserError when image files do not exist; on large sets it looks at an even sample of about `limit`."""
        step = max(1, len(self) // limit)
        missing = [row for row in range(0, len(self), step) if not os.path.isfile(self.files[row])]
        if missing:
            first = self.path[missing[0]]
            relative = not os.path.isabs(first)
            where = self.origin if relative else "its path is absolute"
            raise UserError(
                f"{len(missing)} of {len(range(0, len(self), step))} images of {self.source or 'the manifest'} do not "
                f"exist, first {first} ({where}): move the images or correct the paths; `edgeembed data check "
                f"{self.source or 'MANIFEST'} --fix OUT` writes a manifest without them"
            )

    def evaluation(self, split: str) -> tuple[Rows, Rows]:
        """Query and index rows of the protocol for "test" or "val"; a query never retrieves its own image.

        Raises UserError where there is nothing to evaluate on.
        """
        query, index = (plan_val if split == "val" else plan_test)(self)
        if query.size and index.size:
            return query, index
        if all(self.label[row] is None for row in self.rows(split)):
            raise UserError(f"the manifest has no labelled rows in split {split!r}: nothing to evaluate on")
        raise UserError("the manifest's test split has no rows of role query, or none of role index: set `role`")


def build_manifest(root: Path, rows: Iterable[ManifestRow], *, source: str) -> Manifest:
    """Builds and validates a manifest; labels and domains are normalised by `clean_name`."""
    rows = list(rows)
    columns: dict[str, Any] = {name: tuple(getattr(row, name) for row in rows) for name in COLUMNS}
    repeat = _none_if_all_one(row.repeat for row in rows)
    manifest = Manifest(root=root, repeat=repeat, **_cleaned(columns))
    check_values(manifest, source)
    return manifest


def check_values(manifest: Manifest, source: str) -> None:
    """Raises UserError for the first value that a manifest cannot hold; it names `source`, the column and the value."""
    if len(manifest) == 0:
        raise UserError(f"{source}: holds no images")
    for name, allowed in (("split", SPLITS), ("role", (*ROLES, None))):
        wrong = set(getattr(manifest, name)) - set(allowed)
        if wrong == {None}:
            raise empty_value(source, name, getattr(manifest, name).index(None))
        if wrong:
            expected = ", ".join(str(value) for value in allowed if value)
            raise UserError(
                f"{source}: column {name!r} holds {min(map(str, wrong - {None}))!r}, expected one of {expected}"
            )
    for name in ("path", "domain"):
        column = getattr(manifest, name)
        if not all(column):
            raise empty_value(source, name, next(row for row, value in enumerate(column) if not value))
    for name in ("path", "label", "domain"):
        # `isascii` first: it is fast, and true for nearly all names of a large manifest.
        wrong = {value for value in getattr(manifest, name) if value and not value.isascii() and not is_utf8(value)}
        if wrong:
            raise UserError(f"{source}: {name} {printable(min(wrong))} is not UTF-8: rename the file or folder")
    for row, repeat in enumerate(manifest.repeat or ()):
        if not 0 <= repeat <= MAX_REPEAT:
            raise _wrong_repeat(source, row, repeat)


def _wrong_repeat(source: str, row: int, value: object) -> UserError:
    return UserError(
        f"{source}: column {REPEAT!r} holds {printable(str(value))} in row {row} (the first row is 0), expected a "
        f"whole number from 0 to {MAX_REPEAT}: how often training visits the row in an epoch"
    )


def _none_if_all_one(repeat: Iterable[int]) -> tuple[int, ...] | None:
    """The values, or None where all are 1, so that equal manifests compare equal."""
    counts = tuple(repeat)
    return counts if any(count != 1 for count in counts) else None


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest from Parquet, .csv, .tsv or .txt. Duplicate rows are merged, and their `repeat` values added.

    Raises UserError that names the missing column or the wrong value.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected a manifest: `edgeembed data import folder {path}` writes one")
    if not path.is_file():
        raise UserError(f"{path}: no such manifest: `edgeembed data import` or `edgeembed data synth` writes one")
    table = read_table(path, (*COLUMNS, REPEAT))
    remedy = f"a manifest has {', '.join(COLUMNS)}; `edgeembed data import table {path}` needs `path` alone"
    columns: dict[str, Any] = {name: table.require(name, remedy) for name in COLUMNS}
    columns["path"] = table.paths(remedy=remedy) if table.num_rows else ()
    repeat = _none_if_all_one(_repeats(str(path), table.columns.get(REPEAT, ())))
    read = Manifest(
        root=table.root, root_name=table.root_name, source=path.resolve(), repeat=repeat, **_cleaned(columns)
    )
    check_values(read, str(path))
    manifest = merge_equal_rows(read, sum)
    if len(manifest) < len(read):
        log.info(
            "%s: %d duplicate rows are merged, and counted in `repeat`: %d of %d rows are left",
            *(path, len(read) - len(manifest), len(manifest), len(read)),
        )
    return manifest


def _repeats(source: str, cells: Iterable[str | None]) -> Iterable[int]:
    """The values of the column `repeat`: an empty cell is 1; 2.0, as data frames write it, is 2."""
    for row, cell in enumerate(cells):
        text = (cell or "1").strip()
        if not re.fullmatch(r"[0-9]{1,9}(\.0*)?", text):
            raise _wrong_repeat(source, row, text)
        yield int(float(text))


def merge_equal_rows(manifest: Manifest, combine: Callable[[list[int]], int]) -> Manifest:
    """Merges rows that are equal in all columns but `repeat`; `combine` computes the merged `repeat` from theirs."""
    # The spelling of the path does not count, as in `image_number`.
    others = (getattr(manifest, name) for name in COLUMNS[1:])
    keys = list(zip(map(path_key, manifest.path), *others, strict=True))
    if len(set(keys)) == len(keys):
        return manifest
    repeats_of: dict[tuple[str | None, ...], list[int]] = defaultdict(list)
    first_of: dict[tuple[str | None, ...], int] = {}
    for row, (key, repeat) in enumerate(zip(keys, manifest.visits(np.arange(len(keys))).tolist(), strict=True)):
        repeats_of[key].append(repeat)
        first_of.setdefault(key, row)
    merged = manifest.take(np.array(list(first_of.values()), dtype=np.int64))
    merged = replace(merged, source=manifest.source, root_name=manifest.root_name)
    return merged.with_repeat(map(combine, repeats_of.values()))


def _cleaned(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: column if name == "path" else tuple(map(clean_name, column)) for name, column in columns.items()}


def check_manifest_name(path: Path) -> None:
    """Raises UserError where `write_manifest` cannot write this format; called before any work is done."""
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise unknown_choice("suffix", path.suffix, (".parquet", ".csv"), f"({path})")
    if not is_text_table(path):
        import pyarrow.parquet  # noqa: F401  # missing in the base install: fail before any work


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes .parquet (`root` in its metadata) or .csv (paths relative to its folder), atomically."""
    check_manifest_name(path)
    write = _write_csv if is_text_table(path) else _write_parquet
    with whole_file(path) as file:
        write(file, manifest, path.parent.resolve())


def _write_csv(file: BinaryIO, manifest: Manifest, base: Path) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    has_outer_spaces = any(path != path.strip() for path in manifest.path)  # readers strip them unless quoted
    writer = csv.writer(text, quoting=csv.QUOTE_ALL if has_outer_spaces else csv.QUOTE_MINIMAL)
    columns = {name: getattr(manifest, name) for name in COLUMNS[1:]}
    if manifest.repeat is not None:
        columns[REPEAT] = manifest.repeat
    writer.writerow(["path", *columns])
    for image, *rest in zip(manifest.files, *columns.values(), strict=True):
        relative = os.path.relpath(image, base).replace(os.sep, "/")  # every system reads forward slashes
        writer.writerow([relative, *("" if value is None else value for value in rest)])
    text.detach()  # flushes, and leaves the file open for the caller


def _write_parquet(file: BinaryIO, manifest: Manifest, _base: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    # Paths are stored as they are: the root in the metadata makes them absolute.
    metadata = {b"root": os.fsencode(manifest.root.resolve())}
    columns = {name: pa.array(getattr(manifest, name), pa.string()) for name in COLUMNS}
    if manifest.repeat is not None:
        columns[REPEAT] = pa.array(manifest.repeat, pa.int64())
    table = pa.table(columns).replace_schema_metadata(metadata)
    pa.parquet.write_table(table, file, compression="zstd")


def class_sizes(names: Sequence[tuple[str, str]], manifest: Manifest) -> list[int]:
    """Number of training images of each class, (K,); `repeat` does not count."""
    rows = manifest.rows("train")
    pairs = np.stack([class_indices(names, manifest, rows), manifest.image_number[rows]], axis=1)
    # Distinct pairs of class and image: an image in two rows of its class counts once.
    class_N = np.unique(pairs, axis=0)[:, 0]
    size_K: list[int] = np.bincount(class_N[class_N >= 0], minlength=len(names)).tolist()
    return size_K


def class_indices(names: Sequence[tuple[str, str]], manifest: Manifest, rows: Rows) -> Rows:
    """Class index of each row (its position in `names`); -1 for unlabelled rows and unknown classes."""
    index_of = {name: index for index, name in enumerate(names)}
    return np.array(
        [index_of.get((manifest.domain[row], manifest.label[row] or ""), -1) for row in rows], dtype=np.int64
    )
