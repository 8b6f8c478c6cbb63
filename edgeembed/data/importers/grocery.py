"""Imports Grocery Store (Klasson et al., WACV 2019): phone photographs of fruit, vegetables and cartons in shops."""

from __future__ import annotations

import csv
from pathlib import Path

from edgeembed.data.manifest import Manifest, ManifestRow, build_manifest
from edgeembed.errors import UserError

ROLES = {"train": "index", "val": None, "test": "query"}


def import_grocery(root: Path) -> Manifest:
    """Reads the official layout; `root` is the repository's folder or its `dataset` folder.

    The label is the fine-grained class of `classes.csv`, by the id in each list: class folders lie at two depths.
    """
    folder = root if (root / "classes.csv").is_file() else root / "dataset"
    for name in ("classes.csv", *(f"{split}.txt" for split in ROLES)):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: no such file: {root} is not the Grocery Store data set")
    with (folder / "classes.csv").open(newline="", encoding="utf-8") as file:
        names = {row["Class ID (int)"].strip(): row["Class Name (str)"].strip() for row in csv.DictReader(file)}
    rows = []
    for split, role in ROLES.items():
        for number, line in enumerate((folder / f"{split}.txt").read_text(encoding="utf-8").splitlines(), start=1):
            parts = [part.strip() for part in line.split(",")]
            if parts == [""]:
                continue
            # Columns: path, id of the fine-grained class, id of the coarse class.
            if len(parts) != 3 or parts[1] not in names:
                raise UserError(f"{folder / f'{split}.txt'} line {number}: expected path, fine id, coarse id: {line!r}")
            label = f"grocery/{names[parts[1]]}"
            rows.append(ManifestRow(path=parts[0], label=label, domain="packaged_goods", split=split, role=role))
    return build_manifest(folder.resolve(), rows, source=str(root))
