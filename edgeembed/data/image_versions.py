"""Identifies the contents of image files, so that embeddings of an earlier version of an image are not reused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from edgeembed.files import sha256_of
from edgeembed.progress import track

if TYPE_CHECKING:
    from edgeembed.config import ImageKey  # config imports yaml, which the base install lacks

NUM_READERS = 4  # threads: reading waits for the disk
MISSING = "missing"  # stands for a file that does not exist or cannot be read


def images_id(files: Sequence[str], *, by: ImageKey) -> str:
    """An id of the files at some paths, in this order: `by`, a colon and a hash.

    `stat` hashes sizes and modification times in nanoseconds: fast, and a moved or linked folder keeps its id, a copy
    only if it keeps the times. `content` hashes every byte, so that all copies have the same id.
    """
    if by == "stat":
        return _id(by, map(_stat, files))
    with ThreadPoolExecutor(NUM_READERS) as pool:
        return _id(by, track(pool.map(_sha256, files), "checksums of images", total=len(files)))


def image_key_of(images_id: str) -> ImageKey:
    """The `by` that an id of `images_id` was made with."""
    return "content" if images_id.startswith("content:") else "stat"


def _id(by: ImageKey, versions: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for version in versions:
        digest.update(version.encode() + b"\0")
    return f"{by}:{digest.hexdigest()[:16]}"


def _stat(file: str) -> str:
    try:
        facts = os.stat(file)
    except (OSError, ValueError):  # ValueError: a path with a null byte
        return MISSING
    return f"{facts.st_size} {facts.st_mtime_ns}"


def _sha256(file: str) -> str:
    try:
        return sha256_of(file)
    except (OSError, ValueError):  # ValueError: a path with a null byte
        return MISSING
