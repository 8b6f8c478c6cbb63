"""Labels that the tables named on the command line give to their images."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)


def labels_of(paths: Sequence[Path]) -> dict[str, str]:
    """The label of each labelled image, by its absolute path as `gather_images` gives it.

    An index holds one label an image: where tables give several, the last counts, and a line says so.
    """
    from edgeembed.data.tables import TABLE_SUFFIXES, clean, read_table
    from edgeembed.image_files import printable

    labels: dict[str, str] = {}
    others: dict[str, str] = {}  # the first label of an image that has several
    for path in paths:
        if path.suffix.lower() not in TABLE_SUFFIXES or path.is_dir():
            continue
        table = read_table(path, ("path", "label"))
        files = (os.path.abspath(os.path.join(table.root, file)) for file in table.paths())
        given = map(clean, table.columns.get("label", (None,) * table.num_rows))
        for file, label in zip(files, given, strict=True):
            if label is None:
                continue
            if labels.setdefault(file, label) != label:
                others.setdefault(file, labels[file])
                labels[file] = label
    if others:
        file, label = next(iter(others.items()))
        log.warning(
            "%d images have several labels, of which the last is stored, first %s: %r and %r",
            len(others), printable(file), label, labels[file],
        )  # fmt: skip
    return labels
