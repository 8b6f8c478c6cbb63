"""Names the versions of images on disk, so that embeddings of older images are not used for changed ones."""

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

READERS = 4  # threads that wait for the disk
MISSING = "missing"  # in place of the version of a file that is gone or cannot be read


def images_id(files: Sequence[str], *, by: ImageKey) -> str:
    """Names what lies at some paths, in their order: `by` and a hash.

    `stat` looks at sizes and modification times, in nanoseconds: a moved or linked folder keeps its name, a copy does
    where it keeps the times. `content` reads every byte, so that copies of any kind are the same.
    """
    if by == "stat":
        return _name(by, map(_stat, files))
    with ThreadPoolExecutor(READERS) as pool:
        return _name(by, track(pool.map(_sha256, files), "checksums of images", total=len(files)))


def kind_of(name: str) -> ImageKey:
    """The `by` of a name that `images_id` gave."""
    return "content" if name.startswith("content:") else "stat"


def _name(by: ImageKey, versions: Iterable[str]) -> str:
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
