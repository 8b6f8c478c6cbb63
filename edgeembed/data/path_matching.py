"""Paths of a table in the spelling of the disk: other separators, other Unicode forms, spaces around them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path


def paths_on_disk(root: Path, paths: Sequence[str]) -> list[str]:
    """Each path as it is where a file has this name, else as the file is spelled that it means, else without the spaces
    around it.

    macOS writes `é` as two characters (NFD), most other programs as one (NFC); Windows writes `a\\b.png`.
    Plain ASCII paths are not looked up: a data set may have millions, on a disk in a network.
    """
    folders: dict[str, dict[str, str]] = {}
    return [path if _is_plain(path) else _find(str(root), path, folders) or path.strip() for path in paths]


def same_path(path: str) -> str:
    """A form in which two spellings of one path are equal."""
    return unicodedata.normalize("NFC", path.replace("\\", "/") if os.sep == "\\" else path)


def _is_plain(path: str) -> bool:
    return path.isascii() and "\\" not in path and path == path.strip()


def _find(root: str, path: str, folders: dict[str, dict[str, str]]) -> str | None:
    if os.path.lexists(os.path.join(root, path)):
        return path
    for spelling in dict.fromkeys((path, path.strip(), path.replace("\\", "/"), path.strip().replace("\\", "/"))):
        if os.path.lexists(os.path.join(root, spelling)):
            return spelling
        found = _find_composed(root, spelling, folders)
        if found is not None:
            return found
    return None


def _find_composed(root: str, path: str, folders: dict[str, dict[str, str]]) -> str | None:
    """Part by part, by the name that is the same in NFC."""
    found: list[str] = []
    for part in Path(path).parts:
        folder = os.path.join(root, *found)
        if not os.path.lexists(os.path.join(folder, part)):
            match = _names(folder, folders).get(unicodedata.normalize("NFC", part))
            if match is None:
                return None
            part = match
        found.append(part)
    return Path(*found).as_posix() if found else None


def _names(folder: str, folders: dict[str, dict[str, str]]) -> dict[str, str]:
    """What a folder holds, by name in NFC; read once."""
    if folder not in folders:
        try:
            folders[folder] = {unicodedata.normalize("NFC", name): name for name in os.listdir(folder)}
        except OSError:
            folders[folder] = {}
    return folders[folder]
