"""Readers of data sets as they lie on disk, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeembed.data.importers.folder import import_folder
from edgeembed.data.importers.grocery import import_grocery
from edgeembed.data.importers.table import import_csv
from edgeembed.data.manifest import Manifest
from edgeembed.errors import unknown_choice

SOURCES: dict[str, tuple[Callable[[Path], Manifest], str]] = {
    "folder": (import_folder, "class folders: ROOT/class/image.jpg, or ROOT/train|val|test/class/image.jpg"),
    "csv": (import_csv, "a table with the header path,label,domain,split,role; ROOT is the file"),
    "grocery": (import_grocery, "Grocery Store (Klasson et al. 2019), official layout; queries test, index train"),
}


def import_source(name: str, root: Path) -> Manifest:
    """Reads a data set. Raises UserError for an unknown source or a root without its files."""
    if name not in SOURCES:
        raise unknown_choice("source", name, SOURCES)
    return SOURCES[name][0](root)
