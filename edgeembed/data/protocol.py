"""Which rows of a manifest are queries and which are index images.

Joined data sets may need different protocols. So val is decided class by class, and test domain by domain, each from
the rows of that class or domain alone. All of them share one index.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgeembed.data.manifest import Manifest, Rows


def plan_val(manifest: Manifest) -> tuple[Rows, Rows]:
    """Query and index rows of val.

    Queries are all labelled val rows. The index holds the train rows of their classes. For classes without train rows
    it holds the val rows, which are then leave-one-out.
    """
    query = _labelled(manifest, "val")
    classes = {manifest.class_of(row) for row in query}
    train = [row for row in manifest.rows("train").tolist() if manifest.class_of(row) in classes]
    trained = {manifest.class_of(row) for row in train}
    held_out = [row for row in query if manifest.class_of(row) not in trained]
    return _distinct(manifest, query), _distinct(manifest, [*train, *held_out])


def plan_test(manifest: Manifest) -> tuple[Rows, Rows]:
    """Query and index rows of test.

    Queries are the labelled test rows of role query or both; the index holds every row, of any split, of role index or
    both. Where no labelled test row of a domain has a role, all of them count as both (leave-one-out).
    """
    labelled = _labelled(manifest, "test")
    with_roles = {manifest.domain[row] for row in labelled if manifest.role[row] is not None}
    without_roles = [row for row in labelled if manifest.domain[row] not in with_roles]
    query = [row for row in labelled if manifest.role[row] in ("query", "both")]
    index = [row for row, role in enumerate(manifest.role) if role in ("index", "both")]
    return _distinct(manifest, [*query, *without_roles]), _distinct(manifest, [*index, *without_roles])


def _labelled(manifest: Manifest, split: str) -> list[int]:
    return [row for row in manifest.rows(split).tolist() if manifest.label[row] is not None]


def _distinct(manifest: Manifest, rows: Iterable[int]) -> Rows:
    """Rows in order, the first of those that give one image the same label (they differ in role or spelling)."""
    first_of: dict[tuple[int, str, str | None], int] = {}
    for row in sorted(rows):
        first_of.setdefault((int(manifest.image_number[row]), *manifest.class_of(row)), row)
    return np.array(list(first_of.values()), dtype=np.int64)
