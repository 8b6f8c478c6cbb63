"""Verifies that every image of a manifest is one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from edgeembed.data.manifest import Manifest
from edgeembed.images import ImageError, load_rgb


def undecodable(manifest: Manifest, *, workers: int) -> list[str]:
    """One line, naming file and reason, for each distinct file that is missing or cannot be decoded in full."""

    def reason(file: str) -> str | None:
        try:
            load_rgb(file)
        except ImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(workers) as pool:
        return [found for found in pool.map(reason, sorted(set(manifest.files))) if found is not None]
