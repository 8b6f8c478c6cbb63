"""Counts the images of a manifest and lists its limitations, so that a user learns of them before a run fails."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np

from edgeembed.data.manifest import SPLITS, Manifest


def summary(manifest: Manifest) -> dict[str, object]:
    """Counts of images, of images per split and domain, of visits per training epoch, classes and unlabelled images."""
    return {
        "images": len(manifest),
        "splits": {split: int(manifest.rows(split).size) for split in SPLITS},
        "visits": int(manifest.visits(manifest.rows("train")).sum()),
        "classes": len(manifest.class_names(np.arange(len(manifest)))),
        "domains": dict(sorted(Counter(manifest.domain).items())),
        "unlabelled": sum(label is None for label in manifest.label),
    }


def limitations(manifest: Manifest) -> list[str]:
    """One sentence for each thing that training or evaluation cannot do with this manifest."""
    labelled = [label for label in manifest.label if label]
    if not labelled:
        return [
            f"none of {len(manifest)} images has a label: they can be distilled on, not trained or evaluated on. "
            "Labels are a table's column `label`, or the names of the folders below ROOT; where ROOT itself is a "
            "class, give the folder above it"
        ]
    sentences = []
    # Distinct images: a row that repeats one does not give it another image to match.
    images = {image for image in zip(manifest.domain, manifest.label, manifest.path, strict=True) if image[1]}
    num_images = Counter((domain, str(label)) for domain, label, _ in images)
    single = [label for (_, label), count in num_images.items() if count == 1]
    if len(num_images) == 1:
        sentences.append(f"there is only one class, {labelled[0]!r}: training and evaluation need at least two")
    if single:
        sentences.append(
            f"{len(single)} of {len(num_images)} classes have a single image, first {min(single)!r}: "
            "the image has no other image to match, so it is not evaluated"
        )
    evaluated = {split for split, label in zip(manifest.split, manifest.label, strict=True) if label} - {"train"}
    if not evaluated:
        sentences.append("no labelled image is in val or test: retrieval cannot be measured")
    test_rows = [row for row in manifest.rows("test").tolist() if manifest.label[row]]
    domains_with_roles = {manifest.domain[row] for row in test_rows if manifest.role[row]}
    # The rule of `protocol.plan_test`: roles of a domain count as soon as one test row has a role.
    left_out = [row for row in test_rows if manifest.domain[row] in domains_with_roles and not manifest.role[row]]
    if left_out:
        sentences.append(
            f"{len(left_out)} test images have no role, although other images of their domain have one, first "
            f"{manifest.path[left_out[0]]}: they are neither queries nor in the index; set `role`"
        )
    return sentences


def repeated_paths(manifest: Manifest) -> str | None:
    """The number of rows that name an image of an earlier row, however the path is spelled, and the first such image.

    None where there is no such row.
    """
    seen: set[str] = set()
    repeated: list[str] = []
    for path in map(os.path.normpath, manifest.files):
        (repeated.append if path in seen else seen.add)(path)
    if not repeated:
        return None
    return f"rows that name an image again: {len(repeated)} (first {repeated[0]})"
