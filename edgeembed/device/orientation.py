"""Reads the EXIF orientation of an image, and the transpose that makes it upright.

Pillow's `ImageOps.exif_transpose` also writes the EXIF block again, and fails where one unusual tag cannot be written.
This module reads the orientation only.
"""

from __future__ import annotations

import contextlib
import io
import struct
from typing import BinaryIO

from PIL import ExifTags, Image

TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDE_SWAPPING_ORIENTATIONS = (5, 6, 7, 8)
EXIF_MARK = b"Exif\0\0"
WHOLE_NUMBERS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l"}  # struct codes of EXIF's integer types
MAX_TAGS = 4096


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8, of an image that was not transposed yet; 1 where none can be read."""
    value = pillow_orientation(image)
    if value not in TRANSPOSES:
        # Pillow stops reading at an invalid tag, which may come before the orientation.
        value = parse_orientation(image)
    return value if value in TRANSPOSES else 1


def load_and_get_transpose(image: Image.Image) -> Image.Transpose | None:
    """Loads an image and returns the transpose that makes it upright; None where it is upright.

    Pillow transposes a TIFF file while loading it, if it finds the orientation; such a file is not transposed again.
    """
    if not is_unloaded_tiff(image):
        image.load()
        return TRANSPOSES.get(orientation_of(image))
    done_by_pillow = pillow_orientation(image) in TRANSPOSES
    orientation = None if done_by_pillow else parse_orientation(image)  # while the file is open
    image.load()
    return TRANSPOSES.get(orientation or 1)


def pillow_orientation(image: Image.Image) -> int | None:
    """The orientation in EXIF or XMP as Pillow reads it; None where there is none or Pillow cannot read it."""
    with contextlib.suppress(Exception):  # struct.error, SyntaxError, TypeError and more, or a warning made an error
        value = image.getexif().get(ExifTags.Base.Orientation)
        return int(value) if value in TRANSPOSES else None
    return None


def parse_orientation(image: Image.Image) -> int | None:
    """The orientation in the EXIF block, or in a TIFF file that is not loaded yet; None where there is none."""
    if is_unloaded_tiff(image):
        file: BinaryIO = image.fp  # type: ignore[attr-defined]
        position = file.tell()
        try:
            return parse_orientation_tag(file)
        finally:
            file.seek(position)
    block = image.info.get("exif")
    if not isinstance(block, bytes):
        text = image.info.get("Raw profile type exif")  # hexadecimal lines, which ImageMagick writes into PNG files
        if not isinstance(text, str):
            return None
        try:
            block = bytes.fromhex("".join(text.split("\n")[3:]))
        except ValueError:
            return None
    return parse_orientation_tag(io.BytesIO(block.removeprefix(EXIF_MARK)))


def is_unloaded_tiff(image: Image.Image) -> bool:
    """Whether this is an open TIFF file whose pixels were not loaded yet."""
    return image.format == "TIFF" and bool(getattr(image, "tile", None)) and getattr(image, "fp", None) is not None


def parse_orientation_tag(file: BinaryIO) -> int | None:
    """The orientation tag in the first directory of a TIFF structure, which is read tag by tag; None without one."""
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
    except (KeyError, OSError, ValueError, struct.error):  # cut off, or not a TIFF structure
        return None
    return None
