"""Removes metadata from a TIFF file, for files that Pillow cannot open because of one damaged tag."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path
from typing import BinaryIO

ENTRY_BYTES = 12
ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
PIXEL_TAGS = frozenset(
    {256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325}
    | {332, 338, 339, 347, 529, 530, 531, 532}
)
"""Tags that determine the pixels and the orientation (TIFF 6.0 and its supplements)."""


def without_metadata(source: str | Path | BinaryIO) -> BinaryIO | None:
    """The first image of a TIFF file without the tags that do not concern its pixels; None for another kind of file."""
    with Path(source).open("rb") if isinstance(source, (str, Path)) else contextlib.nullcontext(source) as file:
        file.seek(0)
        order = ORDERS.get(mark := file.read(4))
        if order is None:
            return None
        content = bytearray(mark + file.read())
    try:
        (table,) = struct.unpack_from(order + "L", content, 4)
        (count,) = struct.unpack_from(order + "H", content, table)
        first = table + 2
        entries = [
            content[start : start + ENTRY_BYTES] for start in range(first, first + count * ENTRY_BYTES, ENTRY_BYTES)
        ]
        kept = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] in PIXEL_TAGS]
    except struct.error:
        return None
    shorter = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)  # offset 0: no further image
    content[table : table + len(shorter)] = shorter
    return io.BytesIO(content)
