"""Turns a picture as its camera noted, whatever else stands in its EXIF data.

Pillow's own `ImageOps.exif_transpose` writes the whole EXIF block again and fails where one odd tag cannot be written.
Here nothing but the orientation is read.
"""

from __future__ import annotations

import contextlib
import io
import struct
from typing import BinaryIO

from PIL import ExifTags, Image

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPS_SIDES = (5, 6, 7, 8)
EXIF_MARK = b"Exif\0\0"
WHOLE_NUMBERS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l"}  # struct codes of EXIF's integer types
MAX_TAGS = 4096


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of a picture that is not turned yet: 1 (upright) to 8; 1 where none can be read."""
    value = seen_by_pillow(image)
    if value not in TURNS:
        # Pillow stops reading at a tag that leads out of the block, which may stand before the orientation.
        value = read_orientation(image)
    return value if value in TURNS else 1


def load_and_find_turn(image: Image.Image) -> Image.Transpose | None:
    """Loads a picture; gives the turn that makes it upright, None where it is.

    Pillow turns TIFF files while it loads them, where it sees their orientation; they are not turned twice.
    """
    waiting = is_tiff_to_load(image)
    seen = waiting and seen_by_pillow(image) in TURNS
    missed = read_orientation(image) if waiting and not seen else None
    image.load()
    return TURNS.get((missed or 1) if waiting else orientation_of(image))


def seen_by_pillow(image: Image.Image) -> int | None:
    """The orientation in EXIF or XMP as Pillow reads it; None where the data is too damaged for it."""
    with contextlib.suppress(Exception):  # struct.error, SyntaxError, TypeError and more, or a warning made an error
        value = image.getexif().get(ExifTags.Base.Orientation)
        return int(value) if value in TURNS else None
    return None


def read_orientation(image: Image.Image) -> int | None:
    """The orientation tag of the EXIF block, or of a TIFF file that is not loaded yet; None where there is none."""
    if is_tiff_to_load(image):
        file: BinaryIO = image.fp  # type: ignore[attr-defined]
        position = file.tell()
        try:
            return orientation_tag(file)
        finally:
            file.seek(position)
    block = image.info.get("exif")
    if not isinstance(block, bytes):
        text = image.info.get("Raw profile type exif")  # as ImageMagick writes it into PNG files: hexadecimal lines
        if not isinstance(text, str):
            return None
        try:
            block = bytes.fromhex("".join(text.split("\n")[3:]))
        except ValueError:
            return None
    return orientation_tag(io.BytesIO(block.removeprefix(EXIF_MARK)))


def is_tiff_to_load(image: Image.Image) -> bool:
    return image.format == "TIFF" and bool(getattr(image, "tile", None)) and getattr(image, "fp", None) is not None


def orientation_tag(file: BinaryIO) -> int | None:
    """The value of the orientation tag in the first table of a TIFF structure, read tag by tag."""
    try:
        file.seek(0)
        header = file.read(8)
        order = {b"II": "<", b"MM": ">"}[header[:2]]
        file.seek(struct.unpack(order + "L", header[4:])[0])
        (count,) = struct.unpack(order + "H", file.read(2))
        for _ in range(min(count, MAX_TAGS)):
            tag, kind, _, value = struct.unpack(order + "HHL4s", file.read(12))
            if tag == ExifTags.Base.Orientation and kind in WHOLE_NUMBERS:
                code = order + WHOLE_NUMBERS[kind]
                return int(struct.unpack(code, value[: struct.calcsize(code)])[0])
    except (KeyError, OSError, ValueError, struct.error):  # cut off, or something else than EXIF
        return None
    return None
