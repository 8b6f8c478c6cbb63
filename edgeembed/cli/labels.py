"""Labels that the tables named on the command line give to their images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def labels_of(paths: Sequence[Path]) -> dict[str, str]:
    """The label of each labelled image, by its absolute path as `gather_images` gives it."""
    from edgeembed.data.tables import TABLE_SUFFIXES, clean, read_table

    labels: dict[str, str] = {}
    for path in paths:
        if path.suffix.lower() not in TABLE_SUFFIXES or path.is_dir():
            continue
        table = read_table(path, ("path", "label"))
        files = (os.path.abspath(os.path.join(table.root, file)) for file in table.paths())
        given = map(clean, table.columns.get("label", (None,) * table.num_rows))
        labels |= {file: label for file, label in zip(files, given, strict=True) if label}
    return labels
