"""One table for every data set: path, label, domain, split, role (Parquet, or CSV with the same header)."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edgeembed.data.spelling import same_path
from edgeembed.data.tables import clean, empty_value, is_text_table, read_table
from edgeembed.errors import UserError, unknown_choice
from edgeembed.files import whole_file
from edgeembed.texts import is_utf8, printable

COLUMNS = ("path", "label", "domain", "split", "role")
SPLITS = ("train", "val", "test")
ROLES = ("query", "index", "both")

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One image: `label` is unique within its domain; None where the image is unlabelled."""

    path: str
    label: str | None
    domain: str
    split: str
    role: str | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Columns of equal length; paths are relative to `root` or absolute."""

    root: Path
    path: tuple[str, ...]
    label: tuple[str | None, ...]
    domain: tuple[str, ...]
    split: tuple[str, ...]
    role: tuple[str | None, ...]
    source: Path | None = None  # the file it was read from
    root_name: str = "the root of the manifest"  # for messages: where `root` comes from

    def __len__(self) -> int:
        return len(self.path)

    @functools.cached_property
    def files(self) -> tuple[str, ...]:
        """Where each image lies."""
        root = str(self.root)
        return tuple(os.path.join(root, path) for path in self.path)

    @property
    def origin(self) -> str:
        """In words, what relative paths start from."""
        return f"paths are relative to {self.root}, {self.root_name}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names the table's content, independent of where its root is mounted."""
        digest = hashlib.sha256()
        for row in zip(self.path, self.label, self.domain, self.split, self.role, strict=True):
            text = "\x1f".join(value or "" for value in (same_path(row[0]), *row[1:]))
            digest.update(text.encode() + b"\x1e")
        return digest.hexdigest()[:16]

    def rows(self, split: str) -> Rows:
        return np.flatnonzero(np.array(self.split) == split)

    def visits(self, rows: Rows) -> Rows:
        """How often training visits each of some rows in an epoch; 0 for never."""
        return np.ones(len(rows), dtype=np.int64)

    def training_rows(self) -> Rows:
        """The rows of the train split that training visits at all, each once."""
        rows = self.rows("train")
        return rows[self.visits(rows) > 0]

    def take(self, rows: Rows) -> Manifest:
        """The sub-table of some rows, in their order; a row may repeat."""
        columns: dict[str, Any] = {name: tuple(getattr(self, name)[row] for row in rows) for name in COLUMNS}
        return Manifest(root=self.root, **columns)

    def class_names(self, rows: Rows) -> list[tuple[str, str]]:
        """The distinct (domain, label) pairs among labelled rows, sorted."""
        return sorted({(self.domain[row], label) for row in rows if (label := self.label[row]) is not None})

    def require_files(self, limit: int = 200_000) -> None:
        """Raises UserError when images are not where the table says (a sample of `limit` on large sets)."""
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
        """Query and index rows of the protocol for "test" or "val"; rows in both are leave-one-out.

        test: queries have role query or both in the test split, the index is every row of role index or both;
        test rows without any role are leave-one-out. val: against train where labels overlap, else within val.
        """
        rows = self.rows(split)
        rows = rows[[self.label[row] is not None for row in rows]]
        if rows.size == 0:
            raise UserError(f"the manifest has no labelled rows in split {split!r}: nothing to evaluate on")
        if split == "val":
            names = set(self.class_names(rows))
            train = self.rows("train")
            overlap = train[[(self.domain[row], self.label[row]) in names for row in train]]
            return (rows, overlap) if overlap.size else (rows, rows)
        roles = np.array([role or "" for role in self.role])
        if not np.any(roles[rows] != ""):
            return rows, rows
        query = rows[np.isin(roles[rows], ("query", "both"))]
        index = np.flatnonzero(np.isin(roles, ("index", "both")))
        if query.size == 0 or index.size == 0:
            raise UserError("the manifest's test split has no rows of role query, or none of role index: set `role`")
        return query, index


def build_manifest(root: Path, rows: Iterable[ManifestRow], *, source: str) -> Manifest:
    """A validated manifest from rows; labels and domains in the form that `clean` gives."""
    listed = list(rows)
    columns: dict[str, Any] = {name: tuple(getattr(row, name) for row in listed) for name in COLUMNS}
    manifest = Manifest(root=root, **_cleaned(columns))
    check_values(manifest, source)
    return manifest


def check_values(manifest: Manifest, source: str) -> None:
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
        wrong = {value for value in getattr(manifest, name) if value and not value.isascii() and not is_utf8(value)}
        if wrong:
            raise UserError(f"{source}: {name} {printable(min(wrong))} is not UTF-8: rename the file or folder")


def read_manifest(path: Path) -> Manifest:
    """Reads Parquet, .csv, .tsv or .txt. Raises UserError naming the missing column or the wrong value."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected a manifest: `edgeembed data import folder {path}` writes one")
    if not path.is_file():
        raise UserError(f"{path}: no such manifest: `edgeembed data import` or `edgeembed data synth` writes one")
    table = read_table(path, COLUMNS)
    remedy = f"a manifest has {', '.join(COLUMNS)}; `edgeembed data import table {path}` needs `path` alone"
    columns: dict[str, Any] = {name: table.require(name, remedy) for name in COLUMNS}
    columns["path"] = table.paths(remedy=remedy) if table.num_rows else ()
    manifest = Manifest(root=table.root, root_name=table.root_name, source=path.resolve(), **_cleaned(columns))
    check_values(manifest, str(path))
    return manifest


def _cleaned(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: column if name == "path" else tuple(map(clean, column)) for name, column in columns.items()}


def check_manifest_name(path: Path) -> None:
    """Raises UserError, before any work is done, for what `write_manifest` could not write."""
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise unknown_choice("suffix", path.suffix, (".parquet", ".csv"), f"({path})")
    if not is_text_table(path):
        import pyarrow.parquet  # noqa: F401  # missing in the base install: better said now


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes .parquet (root kept in the metadata) or .csv (paths relative to its folder): whole or not at all."""
    check_manifest_name(path)
    write = _write_csv if is_text_table(path) else _write_parquet
    with whole_file(path) as file:
        write(file, manifest, path.parent.resolve())


def _write_csv(file: BinaryIO, manifest: Manifest, base: Path) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    spaces = any(path != path.strip() for path in manifest.path)  # readers drop them where not quoted
    writer = csv.writer(text, quoting=csv.QUOTE_ALL if spaces else csv.QUOTE_MINIMAL)
    writer.writerow(COLUMNS)
    for image, *rest in zip(manifest.files, *(getattr(manifest, name) for name in COLUMNS[1:]), strict=True):
        relative = os.path.relpath(image, base).replace(os.sep, "/")  # readable on every system
        writer.writerow([relative, *(value or "" for value in rest)])
    text.detach()  # written, but left open


def _write_parquet(file: BinaryIO, manifest: Manifest, _base: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    metadata = {b"root": os.fsencode(manifest.root.resolve())}
    schema = pa.schema([(name, pa.string()) for name in COLUMNS], metadata=metadata)
    table = pa.table({name: list(getattr(manifest, name)) for name in COLUMNS}, schema=schema)
    pa.parquet.write_table(table, file, compression="zstd")


def codes(names: Sequence[tuple[str, str]], manifest: Manifest, rows: Rows) -> Rows:
    """Class number of each row, -1 for unlabelled ones and for labels not among `names`."""
    numbers = {name: number for number, name in enumerate(names)}
    return np.array(
        [numbers.get((manifest.domain[row], manifest.label[row] or ""), -1) for row in rows], dtype=np.int64
    )


def summary(manifest: Manifest) -> dict[str, object]:
    """Counts for a person: images by split, classes, domains, unlabelled images."""
    everything = np.arange(len(manifest))
    return {
        "images": len(manifest),
        "splits": {split: int(manifest.rows(split).size) for split in SPLITS},
        "classes": len(manifest.class_names(everything)),
        "domains": dict(sorted(Counter(manifest.domain).items())),
        "unlabelled": sum(label is None for label in manifest.label),
        "fingerprint": manifest.fingerprint,
    }
