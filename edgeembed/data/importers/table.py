"""A person's own table."""

from __future__ import annotations

from pathlib import Path

from edgeembed.data.manifest import Manifest, read_manifest
from edgeembed.errors import UserError


def import_csv(path: Path) -> Manifest:
    """Reads a CSV with the manifest's header; paths are relative to its folder."""
    if path.suffix != ".csv":
        raise UserError(f"{path}: expected a .csv file with the header path,label,domain,split,role")
    manifest = read_manifest(path)
    manifest.require_files()
    return manifest
