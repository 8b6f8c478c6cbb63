"""A teacher's embeddings on disk, one float16 vector for each (image, view): computed once, for any number of students.

A store is a folder with its key, `targets.json`, and one memory-mapped file for each view, `view-0000.safetensors`,
which holds a tensor `embedding` (N, D). A row of zeros has not been computed yet. Rows are pure functions of the key:
processes that fill a store side by side write equal numbers, a killed process loses nothing, and views can be added.
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

from edgeembed.arrays import HalfArray
from edgeembed.data.manifest import Rows
from edgeembed.errors import UserError, WriteFailed
from edgeembed.files import DISK_FULL_ERRNOS, read_json, size_text, sync_folder, write_json

log = logging.getLogger(__name__)

SCHEMA = "edgeembed-targets/1"
HEADER_BYTES = 4096  # one memory page, so that the rows of a view's file start on a page


@dataclass(frozen=True, kw_only=True)
class TargetKey:
    """Everything that a stored target depends on. `augmentation`: the recipe keys and seed that define the views."""

    space_id: str
    data: str  # fingerprint of the manifest's training rows; the store has one row for each, in their order
    images: str | None  # id of the versions of the image files; None in stores of earlier versions
    num_images: int
    dim: int
    augmentation: dict[str, Any]

    @functools.cached_property
    def name(self) -> str:
        """A short hash: the name of the store's folder below the teacher's run."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def with_precision(self, precision: str) -> TargetKey:
        """Returns the key of the same targets, computed in another precision."""
        return replace(self, augmentation={**self.augmentation, "precision": precision})

    def require_equal(self, stored: dict[str, Any], folder: Path) -> None:
        """Raises UserError that names the first part in which the key of a store on disk differs from this one."""
        for part, value in asdict(self).items():
            stored_value = stored.get(part)
            if stored_value == value:
                continue
            # The ids of image versions are hashes: the message gives the reason in words instead.
            if part == "images":
                reason = describe_image_change(stored_value, value)
                raise UserError(f"{folder}: {reason}: delete the folder, or name another one with targets.store")
            # Name the one key of `augmentation` that differs.
            if isinstance(value, dict) and isinstance(stored_value, dict):
                part, value, stored_value = next(
                    (f"{part}.{key}", value.get(key), stored_value.get(key))
                    for key in sorted({*value, *stored_value})
                    if value.get(key) != stored_value.get(key)
                )
            raise UserError(
                f"{folder}: these targets are for {part} = {stored_value}, not {value}: "
                "leave targets.store unset, or name another folder"
            )


class TargetStore:
    """Reads and writes the targets of a folder. The file of a view is created by the first write to it.

    Raises UserError if the folder holds targets of another key, or something else.
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
        # Hidden files may be those of another process, which is about to write targets.json.
        elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise UserError(f"{folder}: holds no targets (no targets.json): name an empty folder, or a new one")

    def read(self, image_B: Rows, view: int | Rows) -> tuple[HalfArray, npt.NDArray[np.bool_]]:
        """Returns (B, D) float16 and a mask of those that are stored. `view`: one for all images, or (B,)."""
        stored_BD = np.zeros((len(image_B), self.key.dim), np.float16)
        for number, positions in group_by_view(view, len(image_B)):
            rows_ND = self._view(number)
            # Rows of a view without a file stay zero: not stored.
            if rows_ND is not None:
                stored_BD[positions] = rows_ND[image_B[positions]]
        return stored_BD, stored_mask(stored_BD)

    def write(self, image_B: Rows, view: int | Rows, embedding_BD: npt.NDArray[np.floating[Any]]) -> None:
        """Stores unit vectors.

        Raises WriteFailed if the disk is full, before anything of the view is written, and UserError if the folder is
        read-only.
        """
        for number, positions in group_by_view(view, len(image_B)):
            rows_ND = self._view(number)
            if rows_ND is None:
                self._create(number)
                rows_ND = self._view(number)
                assert rows_ND is not None
            if not rows_ND.flags.writeable:
                raise UserError(
                    f"{self._path(number)}: may not be written to, and lacks targets: copy the store elsewhere"
                )
            rows_ND[image_B[positions]] = embedding_BD[positions]

    def flush(self) -> None:
        """Writes to disk what is still in memory and would be lost in a crash of the machine."""
        for rows_ND in self._views.values():
            if isinstance(rows_ND, np.memmap):
                rows_ND.flush()

    def count(self, num_views: int) -> int:
        """Returns how many targets of the first `num_views` views are stored."""
        views = (self._view(view) for view in range(num_views))
        return sum(int(stored_mask(rows_ND).sum()) for rows_ND in views if rows_ND is not None)

    def num_views(self) -> int:
        """Returns how many views have a file, counted from the first."""
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
            # Cut off when it was copied, or written for another number of images.
            if path.stat().st_size != HEADER_BYTES + shape[0] * shape[1] * 2:
                raise UserError(f"{path}: {path.stat().st_size} bytes, not those of {shape} targets: delete the file")
            # A store that is complete can be used from a read-only disk.
            mode: Any = "r+" if os.access(path, os.W_OK) else "r"
            self._views[view] = np.memmap(path, dtype=np.float16, mode=mode, offset=HEADER_BYTES, shape=shape)
        return self._views[view]

    def _create(self, view: int) -> None:
        """Creates the file of a view in its full size. If another process was faster, its file stays."""
        size = self.key.num_images * self.key.dim * 2
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            described = self.folder / "targets.json"
            if described.is_file():  # of another process, which may have another key
                self.key.require_equal(read_json(described), self.folder)
            else:
                write_json(described, {"schema": SCHEMA, **asdict(self.key)})
            # Under a hidden name until it has its full size, so that no other process maps a shorter file.
            temporary = self.folder / f".view-{view:04d}.{os.getpid()}"
            try:
                with temporary.open("wb") as file:
                    file.write(view_header([self.key.num_images, self.key.dim], size, self.key))
                    # Reserves the blocks now: writing to a memory map of a full disk would kill the process.
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, HEADER_BYTES + size)
                    else:
                        file.truncate(HEADER_BYTES + size)
                    os.fsync(file.fileno())
                # Not a rename: that would replace a file in which another process has stored rows by now.
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
    """Opens the store in a folder with the key that it records. Raises UserError if the folder holds none."""
    described = read_json(folder / "targets.json")
    try:
        # Stores of earlier versions do not record `images`.
        fields = {"images": None, **described}
        key = TargetKey(**{name: fields[name] for name in TargetKey.__dataclass_fields__})
    except KeyError as error:
        raise UserError(f"{folder / 'targets.json'}: lacks {error}: not a store of targets") from None
    return TargetStore(folder, key)


def warn_about_outdated_store(folder: Path, key: TargetKey) -> None:
    """Warns, before a new store is begun in `folder`, about one beside it whose image files have changed since."""
    if (folder / "targets.json").is_file():
        return
    requested = asdict(key)
    for described in sorted(folder.parent.glob("*/targets.json")):
        try:
            stored = read_json(described)
        except UserError:
            continue  # an error names a damaged store when it is opened
        # Equal in all but the image versions: the store that the user probably expects to be used.
        if {**stored, "schema": None, "images": None} == {**requested, "schema": None, "images": None}:
            reason = describe_image_change(stored.get("images"), key.images)
            log.warning("%s: %s: not used, computed anew in %s", described.parent, reason, folder)


def describe_image_change(stored: object, requested: object = None) -> str:
    """Returns the reason why a store does not hold targets of the present image files.

    `stored` and `requested`: `images` of the store's key and of the key that is needed.
    """
    if stored is None:
        return "these targets are of an earlier version, which did not record the versions of images"
    # Ids are `stat:HASH` or `content:HASH`.
    kind, requested_kind = (str(one).partition(":")[0] for one in (stored, requested or stored))
    if kind != requested_kind:
        return f"these targets were stored with targets.key = {kind}, not {requested_kind}"
    what = "contents" if kind == "content" else "sizes or modification times"
    return f"these targets are for images of other {what}"


def view_header(shape: list[int], size: int, key: TargetKey) -> bytes:
    """Returns the header of a safetensors file with one float16 tensor, padded with spaces to `HEADER_BYTES`."""
    metadata = {"space_id": key.space_id, "data": key.data, "store": key.name}
    text = json.dumps(
        {"__metadata__": metadata, "embedding": {"dtype": "F16", "shape": shape, "data_offsets": [0, size]}}
    ).encode()
    return struct.pack("<Q", HEADER_BYTES - 8) + text.ljust(HEADER_BYTES - 8)


def group_by_view(view: int | Rows, count: int) -> Iterator[tuple[int, Rows]]:
    """Yields each view with the positions, in a batch of `count` images, at which it occurs."""
    view_B = np.broadcast_to(np.asarray(view), (count,))
    for number in np.unique(view_B).tolist():
        yield number, np.flatnonzero(view_B == number)


def stored_mask(row_BD: HalfArray) -> npt.NDArray[np.bool_]:
    """Returns which rows of a view's file hold a target. A row that was never written is all zeros."""
    # As integers: comparing float16 values with 0 takes several times as long.
    bits = np.ascontiguousarray(row_BD).view(np.uint16)
    mask_B: npt.NDArray[np.bool_] = np.bitwise_or.reduce(bits, axis=1) != 0
    return mask_B
