"""Imports a user's own table of images: CSV of any dialect, or Parquet; only the column of paths is required."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeembed.data.importers.splits import draw_splits, parse_split
from edgeembed.data.manifest import COLUMNS, SPLITS, Manifest, ManifestRow, build_manifest
from edgeembed.data.path_matching import paths_on_disk
from edgeembed.data.tables import TABLE_SUFFIXES, clean_name, read_table
from edgeembed.errors import UserError, unknown_choice

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How to read a table that is not a manifest.

    `columns`: the name of the table's column for path, label, domain, split or role, where it has another name.
    `images`: the folder that paths are relative to; by default the table's. `split`: one split for all images.
    """

    columns: dict[str, str] = field(default_factory=dict)
    images: Path | None = None
    split: str | None = None
    skip_missing: bool = False


def import_table(path: Path, options: TableOptions | None = None) -> Manifest:
    """Reads .csv, .tsv, .txt or .parquet with a column of paths.

    An image without a label is unlabelled; without a domain, its domain is the name of the images' folder; without a
    split, it is for training. A table without a column of splits gets random splits, as class folders do.
    Raises UserError where a column named in the options is missing, and for missing images unless they are skipped.
    """
    options = options or TableOptions()
    if path.suffix.lower() not in TABLE_SUFFIXES or path.is_dir():
        raise UserError(f"{path}: expected a table ({', '.join(TABLE_SUFFIXES)}) with a column of paths")
    if options.split is not None and options.split not in SPLITS:
        raise unknown_choice("split", options.split, SPLITS)
    if options.images is not None and not options.images.is_dir():
        raise UserError(f"--images {options.images}: no such folder")
    names = {name: options.columns.get(name, name) for name in COLUMNS}
    table = read_table(path, tuple(dict.fromkeys(names.values())))
    for name in options.columns:
        table.require(names[name])
    paths = table.paths(names["path"], "give the name of the column of paths with --path-column")
    root, root_name = table.root, table.root_name
    if options.images is not None:
        root, root_name = options.images.resolve(), "given as --images"
        # Looked up again: `table.paths` searched the folder of the table.
        paths = tuple(paths_on_disk(root, paths))
    present = [row for row, file in enumerate(paths) if os.path.isfile(os.path.join(root, file))]
    _report_missing(path, paths, present, f"{root}, {root_name}", skip=options.skip_missing)

    def column(name: str) -> list[str | None]:
        values = table.columns.get(names[name])
        return [clean_name(values[row]) if values else None for row in present]

    labels, domain_names = column("label"), [domain or root.name or "images" for domain in column("domain")]
    splits, roles = _splits(options, labels, domain_names, column("split") if names["split"] in table.columns else None)
    role_column = column("role")  # the table's own roles replace those of drawn splits
    rows = [
        ManifestRow(path=paths[row], label=label, domain=domain, split=split, role=role and role.lower())
        for row, label, domain, split, role in zip(
            present, labels, domain_names, splits, role_column if any(role_column) else roles, strict=True
        )
    ]
    return build_manifest(root, rows, source=str(path))


def _splits(
    options: TableOptions, labels: list[str | None], domains: list[str], split_column: list[str | None] | None
) -> tuple[list[str], list[str | None]]:
    """Split and role of each image: from the options, from the column of splits, else drawn at random."""
    if options.split is not None:
        return [options.split] * len(labels), [None] * len(labels)
    if split_column is not None:
        # An unknown name is kept, so that `check_values` reports it.
        return [parse_split(text) or text if text else "train" for text in split_column], [None] * len(labels)
    # A label is unique only within its domain.
    return draw_splits([label and f"{domain}\0{label}" for label, domain in zip(labels, domains, strict=True)])


def _report_missing(path: Path, paths: Sequence[str], present: Sequence[int], where: str, *, skip: bool) -> None:
    if len(present) == len(paths):
        return
    present_rows = set(present)
    missing = [file for row, file in enumerate(paths) if row not in present_rows]
    if not skip or not present:
        raise UserError(
            f"{path}: {len(missing)} of {len(paths)} images do not exist, first {missing[0]} (paths are relative to "
            f"{where}): give their folder with --images, or leave missing ones out with --skip-missing"
        )
    log.warning("%s: %d left out: image that does not exist: %d (first %s)", path, *[len(missing)] * 2, missing[0])
