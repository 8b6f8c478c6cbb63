"""Decides which rows of a manifest are queries and which are index (gallery) images.

Data sets that were joined may follow different protocols. So val is decided for each class and test for each domain,
from the rows of that class or domain alone. All queries of a split search one common index.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgeembed.data.manifest import Manifest, Rows


def plan_val(manifest: Manifest) -> tuple[Rows, Rows]:
    """Query and index rows of val.

    Queries are all labelled val rows. The index holds the train rows of their classes; for classes without train rows
    it holds their val rows, so that each query searches the others (leave-one-out).
    """
    query = _labelled(manifest, "val")
    classes = {manifest.class_of(row) for row in query}
    in_train = [row for row in manifest.rows("train").tolist() if manifest.class_of(row) in classes]
    train_classes = {manifest.class_of(row) for row in in_train}
    held_out = [row for row in query if manifest.class_of(row) not in train_classes]
    return _distinct(manifest, query), _distinct(manifest, [*in_train, *held_out])


def plan_test(manifest: Manifest) -> tuple[Rows, Rows]:
    """Query and index rows of test.

    Queries are the labelled test rows with role query or both. The index holds the rows of any split with role index or
    both. Where no labelled test row of a domain has a role, all of them are queries and index images (leave-one-out).
    """
    labelled = _labelled(manifest, "test")
    domains_with_roles = {manifest.domain[row] for row in labelled if manifest.role[row] is not None}
    without_roles = [row for row in labelled if manifest.domain[row] not in domains_with_roles]
    query = [row for row in labelled if manifest.role[row] in ("query", "both")]
    index = [row for row, role in enumerate(manifest.role) if role in ("index", "both")]
    return _distinct(manifest, [*query, *without_roles]), _distinct(manifest, [*index, *without_roles])


def _labelled(manifest: Manifest, split: str) -> list[int]:
    return [row for row in manifest.rows(split).tolist() if manifest.label[row] is not None]


def _distinct(manifest: Manifest, rows: Iterable[int]) -> Rows:
    """Sorted rows without duplicates: of several rows with the same image and class, the first is kept.

    Such rows differ in their role or in the spelling of the path.
    """
    first_of: dict[tuple[int, str, str | None], int] = {}
    for row in sorted(rows):
        first_of.setdefault((int(manifest.image_number[row]), *manifest.class_of(row)), row)
    return np.array(list(first_of.values()), dtype=np.int64)
