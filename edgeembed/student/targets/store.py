"""A teacher's answers on disk, one float16 vector for each (image, view): paid for once, for any number of students.

A store is a folder: `targets.json`, its key, and one memory-mapped file a view, `view-0000.safetensors`, with a tensor
`embedding` (N, D). A row of zeros is one not yet computed. Rows are pure functions of the key, so processes that fill a
store side by side can only write the same numbers twice, a killed one loses nothing, and views can be added later.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeembed import locks
from edgeembed.arrays import HalfArray
from edgeembed.data.manifest import Rows
from edgeembed.errors import UserError, WriteFailed
from edgeembed.files import DISK_FULL_ERRNOS, read_json, size_text, sync_folder, write_json

log = logging.getLogger(__name__)

SCHEMA = "edgeembed-targets/1"
HEADER_BYTES = 4096  # of a view's file: rows start on a page


@dataclass(frozen=True, kw_only=True)
class TargetKey:
    """All that a stored target depends on. `augmentation` holds what draws, cuts and mixes views, and the seed."""

    space_id: str
    data: str  # fingerprint of the manifest's training rows; the store has one row for each, in their order
    images: str | None  # what lies at the paths of the manifest; None in stores of earlier versions
    num_images: int
    dim: int
    augmentation: dict[str, Any]

    @functools.cached_property
    def name(self) -> str:
        """Short and unique: where the store lies under the folder of all stores of a teacher."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def at(self, precision: str) -> TargetKey:
        """The key of the same targets, computed in a precision."""
        return replace(self, augmentation={**self.augmentation, "precision": precision})

    def require_equal(self, stored: dict[str, Any], folder: Path) -> None:
        """Raises UserError that names the first thing in which a store differs from what is asked of it."""
        for part, value in asdict(self).items():
            found = stored.get(part)
            if found == value:
                continue
            if part == "images":
                reason = changed_images(found, value)
                raise UserError(f"{folder}: {reason}: delete the folder, or name another one with targets.store")
            if isinstance(value, dict) and isinstance(found, dict):
                part, value, found = next(
                    (f"{part}.{key}", value.get(key), found.get(key))
                    for key in sorted({*value, *found})
                    if value.get(key) != found.get(key)
                )
            raise UserError(
                f"{folder}: these targets are for {part} = {found}, not {value}: "
                "leave targets.store unset, or name another folder"
            )


class TargetStore:
    """Reads and writes targets; the files of views appear when first written to.

    Raises UserError where the folder holds targets of another key, or is not a store.
    """

    def __init__(self, folder: Path, key: TargetKey) -> None:
        self.folder, self.key = folder, key
        self._views: dict[int, HalfArray] = {}
        described = folder / "targets.json"
        if described.is_file():
            stored = read_json(described)
            if stored.get("schema") != SCHEMA:
                raise UserError(f"{described}: schema {stored.get('schema')!r}, this version reads {SCHEMA!r}")
            key.require_equal(stored, folder)
        elif folder.is_dir() and {path.name for path in folder.iterdir()} - {locks.LOCK_NAME}:
            raise UserError(f"{folder}: holds no targets (no targets.json): name an empty folder, or a new one")

    def read(self, image_B: Rows, view: int | Rows) -> tuple[HalfArray, npt.NDArray[np.bool_]]:
        """(B, D) float16, and which of them are known; `view` is one for all images, or one for each (B,)."""
        stored_BD = np.zeros((len(image_B), self.key.dim), np.float16)
        for number, at in by_view(view, len(image_B)):
            rows_ND = self._view(number)
            if rows_ND is not None:
                stored_BD[at] = rows_ND[image_B[at]]
        return stored_BD, are_known(stored_BD)

    def write(self, image_B: Rows, view: int | Rows, embedding_BD: npt.NDArray[np.floating[Any]]) -> None:
        """Stores unit vectors.

        Raises WriteFailed where the disk is full, before anything of the view is written, and UserError where the
        folder may not be written to.
        """
        for number, at in by_view(view, len(image_B)):
            rows_ND = self._view(number)
            if rows_ND is None:
                self._create(number)
                rows_ND = self._view(number)
                assert rows_ND is not None
            if not rows_ND.flags.writeable:
                raise UserError(
                    f"{self._path(number)}: may not be written to, and lacks targets: copy the store elsewhere"
                )
            rows_ND[image_B[at]] = embedding_BD[at]

    def flush(self) -> None:
        """Brings what was written to the disk; until then only a crash of the machine can lose it."""
        for rows_ND in self._views.values():
            if isinstance(rows_ND, np.memmap):
                rows_ND.flush()

    def count(self, num_views: int) -> int:
        """How many targets of the first views are known."""
        views = (self._view(view) for view in range(num_views))
        return sum(int(are_known(rows_ND).sum()) for rows_ND in views if rows_ND is not None)

    def num_views(self) -> int:
        """How many views have a file, counted from the first."""
        view = 0
        while self._path(view).is_file():
            view += 1
        return view

    def _path(self, view: int) -> Path:
        return self.folder / f"view-{view:04d}.safetensors"

    def _view(self, view: int) -> HalfArray | None:
        if view not in self._views:
            path = self._path(view)
            if not path.is_file():
                return None
            shape = (self.key.num_images, self.key.dim)
            if path.stat().st_size != HEADER_BYTES + shape[0] * shape[1] * 2:
                raise UserError(f"{path}: {path.stat().st_size} bytes, not those of {shape} targets: delete the file")
            mode: Any = "r+" if os.access(path, os.W_OK) else "r"
            self._views[view] = np.memmap(path, dtype=np.float16, mode=mode, offset=HEADER_BYTES, shape=shape)
        return self._views[view]

    def _create(self, view: int) -> None:
        """An empty file with all its room on disk, by rename; where another process is faster, its file stays."""
        size = self.key.num_images * self.key.dim * 2
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "targets.json").is_file():
                write_json(self.folder / "targets.json", {"schema": SCHEMA, **asdict(self.key)})
            temporary = self.folder / f".view-{view:04d}.{os.getpid()}"
            try:
                with temporary.open("wb") as file:
                    file.write(header([self.key.num_images, self.key.dim], size, self.key))
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, HEADER_BYTES + size)
                    else:
                        file.truncate(HEADER_BYTES + size)
                    os.fsync(file.fileno())
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, self._path(view))
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(self.folder)
        except OSError as error:
            kind = WriteFailed if error.errno in DISK_FULL_ERRNOS else UserError
            raise kind(
                f"{self.folder}: targets cannot be stored ({error.strerror}; each view needs "
                f"{size_text(HEADER_BYTES + size)}): set targets.store to another folder, or to none, so that the "
                "teacher embeds the views of every step"
            ) from None


def open_existing(folder: Path) -> TargetStore:
    """The store in a folder, by its own key. Raises UserError where there is none."""
    described = read_json(folder / "targets.json")
    try:
        fields = {"images": None, **described}
        key = TargetKey(**{name: fields[name] for name in TargetKey.__dataclass_fields__})
    except KeyError as error:
        raise UserError(f"{folder / 'targets.json'}: lacks {error}: not a store of targets") from None
    return TargetStore(folder, key)


def warn_of_other_versions(folder: Path, key: TargetKey) -> None:
    """Says why a new store is begun in `folder` where one beside it holds targets of the same images, by name."""
    if (folder / "targets.json").is_file():
        return
    asked = asdict(key)
    for described in sorted(folder.parent.glob("*/targets.json")):
        try:
            stored = read_json(described)
        except UserError:
            continue  # a damaged store is named when it is opened
        if {**stored, "schema": None, "images": None} == {**asked, "schema": None, "images": None}:
            reason = changed_images(stored.get("images"), key.images)
            log.warning("%s: %s: not used, computed anew in %s", described.parent, reason, folder)


def changed_images(stored: object, asked: object = None) -> str:
    """Why a store does not count as one of the images that are there, by its key's `images` and the asked one's."""
    if stored is None:
        return "these targets are of an earlier version, which did not record the versions of images"
    kind, asked_kind = (str(one).partition(":")[0] for one in (stored, asked or stored))
    if kind != asked_kind:
        return f"these targets were stored with targets.key = {kind}, not {asked_kind}"
    what = "contents" if kind == "content" else "sizes or modification times"
    return f"these targets are for images of other {what}"


def header(shape: list[int], size: int, key: TargetKey) -> bytes:
    """What a safetensors file with one tensor begins with, filled with spaces to `HEADER_BYTES`."""
    facts = {"space_id": key.space_id, "data": key.data, "store": key.name}
    text = json.dumps(
        {"__metadata__": facts, "embedding": {"dtype": "F16", "shape": shape, "data_offsets": [0, size]}}
    ).encode()
    return struct.pack("<Q", HEADER_BYTES - 8) + text.ljust(HEADER_BYTES - 8)


def by_view(view: int | Rows, count: int) -> Iterator[tuple[int, Rows]]:
    """Each view, with the positions of the images in a batch of `count` that are in this view."""
    view_B = np.broadcast_to(np.asarray(view), (count,))
    for number in np.unique(view_B).tolist():
        yield number, np.flatnonzero(view_B == number)


def are_known(stored_BD: HalfArray) -> npt.NDArray[np.bool_]:
    """Rows that are not all zeros: no unit vector is."""
    bits = np.ascontiguousarray(stored_BD).view(np.uint16)
    known_B: npt.NDArray[np.bool_] = np.bitwise_or.reduce(bits, axis=1) != 0
    return known_B
