"""Matches paths of a table with files on disk that spell them differently: separators, Unicode forms, spaces."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path


def paths_on_disk(root: Path, paths: Sequence[str]) -> list[str]:
    """Each path in the spelling of the file on disk; a path without a file is returned without surrounding spaces.

    macOS writes `é` as two characters (Unicode form NFD), most other programs as one (NFC); Windows writes `a\\b.png`.
    Plain ASCII paths are returned without a look-up: a data set may have millions, on a network disk.
    """
    listings: dict[str, dict[str, str]] = {}
    return [path if _is_plain(path) else _find(str(root), path, listings) or path.strip() for path in paths]


def path_key(path: str) -> str:
    """A normalised path: two spellings of one path have the same key."""
    # Only on Windows is a backslash a separator; elsewhere it is part of a name.
    return unicodedata.normalize("NFC", path.replace("\\", "/") if os.sep == "\\" else path)


def _is_plain(path: str) -> bool:
    return path.isascii() and "\\" not in path and path == path.strip()


def _find(root: str, path: str, listings: dict[str, dict[str, str]]) -> str | None:
    """The path as it is, or else in the first other spelling that a file has; None without such a file."""
    if os.path.lexists(os.path.join(root, path)):
        return path
    # In this order: a spelling that changes less of the path is preferred.
    for spelling in dict.fromkeys((path, path.strip(), path.replace("\\", "/"), path.strip().replace("\\", "/"))):
        if os.path.lexists(os.path.join(root, spelling)):
            return spelling
        found = _find_normalised(root, spelling, listings)
        if found is not None:
            return found
    return None


def _find_normalised(root: str, path: str, listings: dict[str, dict[str, str]]) -> str | None:
    """The path with each part replaced by the name on disk that is equal in NFC; None where a part has none."""
    found: list[str] = []
    # Part by part, since any folder of the path may have another Unicode form on disk.
    for part in Path(path).parts:
        folder = os.path.join(root, *found)
        if not os.path.lexists(os.path.join(folder, part)):
            match = _listing(folder, listings).get(unicodedata.normalize("NFC", part))
            if match is None:
                return None
            part = match
        found.append(part)
    return Path(*found).as_posix() if found else None


def _listing(folder: str, listings: dict[str, dict[str, str]]) -> dict[str, str]:
    """The names in a folder, by their NFC form; each folder is read once and kept in `listings`."""
    if folder not in listings:
        try:
            listings[folder] = {unicodedata.normalize("NFC", name): name for name in os.listdir(folder)}
        except OSError:
            # Its files then count as missing, which the caller reports.
            listings[folder] = {}
    return listings[folder]
