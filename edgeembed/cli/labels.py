"""Labels that the manifests named on the command line give to their images."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path


def labels_of(paths: Sequence[Path]) -> dict[str, str]:
    """The label of each labelled image, by its absolute path as `gather_images` gives it; tables were read by it."""
    labels: dict[str, str] = {}
    for path in paths:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                pairs = [(path.parent / row["path"], row.get("label")) for row in csv.DictReader(file) if row["path"]]
        elif path.suffix == ".parquet":
            from edgeembed.data.manifest import read_manifest  # needs pyarrow

            manifest = read_manifest(path)
            pairs = list(zip(map(Path, manifest.files), manifest.label, strict=True))
        else:
            continue
        labels |= {os.path.abspath(file): label for file, label in pairs if label}
    return labels
