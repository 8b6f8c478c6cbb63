"""Counts of a manifest, and what it cannot be used for, reported at import rather than when a run fails."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np

from edgeembed.data.manifest import SPLITS, Manifest


def summary(manifest: Manifest) -> dict[str, object]:
    """Counts of images, of images by split and domain, of visits of a training epoch, classes and unlabelled images."""
    return {
        "images": len(manifest),
        "splits": {split: int(manifest.rows(split).size) for split in SPLITS},
        "visits": int(manifest.visits(manifest.rows("train")).sum()),
        "classes": len(manifest.class_names(np.arange(len(manifest)))),
        "domains": dict(sorted(Counter(manifest.domain).items())),
        "unlabelled": sum(label is None for label in manifest.label),
    }


def remarks(manifest: Manifest) -> list[str]:
    """One sentence for each limit of a data set that a user may not know of."""
    labelled = [label for label in manifest.label if label]
    found = []
    if not labelled:
        found.append(
            f"none of {len(manifest)} images has a label: they can be distilled on, not trained or evaluated on. "
            "Labels are a table's column `label`, or the names of the folders below ROOT; where ROOT itself is a "
            "class, give the folder above it"
        )
        return found
    images = {image for image in zip(manifest.domain, manifest.label, manifest.path, strict=True) if image[1]}
    images_of = Counter((domain, str(label)) for domain, label, _ in images)
    single = [label for (_, label), count in images_of.items() if count == 1]
    if len(images_of) == 1:
        found.append(f"there is only one class, {labelled[0]!r}: training and evaluation need two at least")
    if single:
        found.append(
            f"{len(single)} of {len(images_of)} classes have a single image, first {min(single)!r}: "
            "no other image can be found for it, so that it is not evaluated"
        )
    evaluated = {split for split, label in zip(manifest.split, manifest.label, strict=True) if label} - {"train"}
    if not evaluated:
        found.append("no labelled image is in val or test: retrieval cannot be measured")
    tested = [row for row in manifest.rows("test").tolist() if manifest.label[row]]
    with_roles = {manifest.domain[row] for row in tested if manifest.role[row]}
    left_out = [row for row in tested if manifest.domain[row] in with_roles and not manifest.role[row]]
    if left_out:
        found.append(
            f"{len(left_out)} test images have no role while others of their domain do, first "
            f"{manifest.path[left_out[0]]}: they are neither queries nor in the index; set `role`"
        )
    return found


def repeated_paths(manifest: Manifest) -> str | None:
    """How many rows name an image that an earlier row names, in any spelling of its path, and the first such image.

    None without any.
    """
    seen: set[str] = set()
    repeated: list[str] = []
    for path in map(os.path.normpath, manifest.files):
        (repeated.append if path in seen else seen.add)(path)
    if not repeated:
        return None
    return f"rows that name an image again: {len(repeated)} (first {repeated[0]})"
