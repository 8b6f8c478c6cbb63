"""Imports data sets from their layout on disk into manifests; `SOURCES` lists the known layouts by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeembed.data.importers.folder import import_folder
from edgeembed.data.importers.grocery import import_grocery
from edgeembed.data.importers.table import TableOptions as TableOptions
from edgeembed.data.importers.table import import_table
from edgeembed.data.manifest import Manifest
from edgeembed.errors import UserError, unknown_choice

TABLE = "a table with a column `path`; label, domain, split and role have defaults; ROOT is the file"

SOURCES: dict[str, tuple[Callable[[Path], Manifest], str]] = {
    "folder": (import_folder, "class folders: ROOT/class/image.jpg, or ROOT/train|val|test/class/image.jpg"),
    "table": (import_table, f".csv, .tsv, .txt or .parquet: {TABLE}"),
    "csv": (import_table, "the same as table"),
    "parquet": (import_table, "the same as table"),
    "grocery": (import_grocery, "Grocery Store (Klasson et al. 2019), official layout; queries test, index train"),
}


def import_source(name: str, root: Path, table: TableOptions | None = None) -> Manifest:
    """Imports a data set; `table` holds the options for sources that are tables.

    Raises UserError for an unknown source, a root without the expected files, or table options for another source.
    """
    if name not in SOURCES:
        raise unknown_choice("source", name, SOURCES)
    read = SOURCES[name][0]
    if read is import_table:
        return import_table(root, table)
    if table not in (None, TableOptions()):
        raise UserError(
            f"data import {name}: column options, --images, --split and --skip-missing "
            "are for tables (data import table)"
        )
    manifest = read(root)
    manifest.require_files()
    return manifest
