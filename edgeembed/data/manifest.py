"""One table for every data set: path, label, domain, split, role (Parquet, or CSV with the same header)."""

from __future__ import annotations

import csv
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeembed.errors import UserError
from edgeembed.files import temporary_name, write_failure

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

    def __len__(self) -> int:
        return len(self.path)

    @functools.cached_property
    def files(self) -> tuple[str, ...]:
        """Where each image lies."""
        root = str(self.root)
        return tuple(os.path.join(root, path) for path in self.path)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names the table's content, independent of where its root is mounted."""
        digest = hashlib.sha256()
        for row in zip(self.path, self.label, self.domain, self.split, self.role, strict=True):
            digest.update("\x1f".join(value or "" for value in row).encode() + b"\x1e")
        return digest.hexdigest()[:16]

    def rows(self, split: str) -> Rows:
        return np.flatnonzero(np.array(self.split) == split)

    def take(self, rows: Rows) -> Manifest:
        """The sub-table of some rows, in their order; a row may repeat."""
        columns: dict[str, Any] = {name: tuple(getattr(self, name)[row] for row in rows) for name in COLUMNS}
        return Manifest(root=self.root, **columns)

    def class_names(self, rows: Rows) -> list[tuple[str, str]]:
        """The distinct (domain, label) pairs among labelled rows, sorted."""
        return sorted({(self.domain[row], label) for row in rows if (label := self.label[row]) is not None})

    def require_files(self, limit: int = 200_000) -> None:
        """Raises UserError when images are not where the table says (a sample of `limit` on large sets)."""
        chosen = self.files[:: max(1, len(self) // limit)]
        missing = [file for file in chosen if not os.path.isfile(file)]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(chosen)} images of the manifest do not exist, first {missing[0]}: "
                "correct the paths or the manifest's root"
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
    """A validated manifest from rows."""
    listed = list(rows)
    columns: dict[str, Any] = {name: tuple(getattr(row, name) for row in listed) for name in COLUMNS}
    manifest = Manifest(root=root, **columns)
    check_values(manifest, source)
    return manifest


def check_values(manifest: Manifest, source: str) -> None:
    if len(manifest) == 0:
        raise UserError(f"{source}: holds no images")
    for name, allowed in (("split", SPLITS), ("role", (*ROLES, None))):
        wrong = set(getattr(manifest, name)) - set(allowed)
        if wrong:
            expected = ", ".join(str(value) for value in allowed if value)
            raise UserError(
                f"{source}: column {name!r} holds {sorted(map(str, wrong))[0]!r}, expected one of {expected}"
            )
    for name in ("path", "domain"):
        if not all(getattr(manifest, name)):
            raise UserError(
                f"{source}: column {name!r} has an empty value in row {getattr(manifest, name).index(None)}"
            )


def read_manifest(path: Path) -> Manifest:
    """Reads .parquet or .csv. Raises UserError naming the missing column or the wrong value."""
    if not path.is_file():
        raise UserError(f"{path}: no such manifest: `edgeembed data import` or `edgeembed data synth` writes one")
    root, columns = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
    if root is None or not root.is_dir():  # the data set was moved together with its manifest
        root = path.parent.resolve()
    manifest = Manifest(root=root, source=path.resolve(), **columns)
    check_values(manifest, str(path))
    return manifest


def _read_csv(path: Path) -> tuple[None, dict[str, Any]]:
    """The columns of a table, read without pyarrow, which a device need not have; an empty cell is None."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, [])
            _check_columns(path, header)
            positions = [header.index(name) for name in COLUMNS]
            rows = []
            for line in lines:
                if not line:
                    continue
                if len(line) != len(header):
                    place = f"{path}: line {lines.line_num}"
                    raise UserError(f"{place} has {len(line)} values, expected {len(header)} as in the header")
                rows.append([line[position] or None for position in positions])
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not a readable .csv manifest ({error})") from None
    return None, {name: tuple(row[column] for row in rows) for column, name in enumerate(COLUMNS)}


def _read_parquet(path: Path) -> tuple[Path | None, dict[str, Any]]:
    """The root that the metadata names, if any, and the columns."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        table = pa.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable {path.suffix or 'Parquet'} manifest ({error})") from None
    _check_columns(path, table.column_names)
    root = (table.schema.metadata or {}).get(b"root", b"").decode()
    columns = {name: tuple(table.column(name).cast(pa.string()).to_pylist()) for name in COLUMNS}
    return Path(root) if root else None, columns


def _check_columns(path: Path, present: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in present]
    if missing:
        raise UserError(f"{path}: lacks column {missing[0]!r}; a manifest has {', '.join(COLUMNS)}")


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes .parquet (root kept in the metadata) or .csv, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / temporary_name()
    try:
        if path.suffix == ".csv":
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(COLUMNS)
                base = path.parent.resolve()
                for file_path, *rest in zip(manifest.files, *(getattr(manifest, c) for c in COLUMNS[1:]), strict=True):
                    relative = os.path.relpath(file_path, base).replace(os.sep, "/")  # readable on every system
                    writer.writerow([relative, *(value or "" for value in rest)])
        else:
            import pyarrow as pa
            import pyarrow.parquet

            metadata = {"root": str(manifest.root.resolve())}
            schema = pa.schema([(name, pa.string()) for name in COLUMNS], metadata=metadata)
            table = pa.table({name: list(getattr(manifest, name)) for name in COLUMNS}, schema=schema)
            pa.parquet.write_table(table, temporary, compression="zstd")
        temporary.replace(path)
    except OSError as error:
        raise write_failure(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


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
