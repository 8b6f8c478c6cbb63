"""Converts an image of any mode that Pillow opens to RGB, with 8 bits a channel and transparency laid on white.

Floats and 32-bit integers do not tell which value is white. Values in 0..1 and in 0..255 are recognised; any others
raise an error, because a wrong guess would silently give a black or a white image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgeembed.errors import UserError

SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
WHITE_IS_ZERO, SIGNED = 0, 2
WHITE_12_BIT, WHITE_16_BIT = 4095, 65535
UNIT_TOLERANCE, BYTE_TOLERANCE = 1e-3, 0.5  # by which a resampled image may exceed 0..1 and 0..255
LEAST_BYTE_PEAK = 32.0
"""A float image whose largest value lies between 1 and this is neither in 0..1 nor likely to be in 0..255."""
SMALL_SAMPLES = {"L;2": 85, "L;4": 17}  # of PNG: one step of a 2-bit or 4-bit grey in 8 bits


def as_rgb(image: Image.Image, colour_key: int | None = None) -> Image.Image:
    """A loaded image in RGB; the image itself where it is RGB and opaque.

    `colour_key` replaces the transparent grey in the image's `info`. Raises UserError, which does not name the image,
    for values whose white is not known and for a mode that cannot be converted.
    """
    if image.mode in (*SIXTEEN_BIT, "I", "F"):
        return grey_to_rgb(image)
    if image.mode == "L" and getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT) == (SIGNED,):  # Pillow reads -1 as 255
        check_not_negative(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    try:
        if is_transparent(image):
            return on_white(to_rgba(image, colour_key))
        return image.convert("RGB")
    except (ValueError, TypeError, ImportError) as error:  # ImportError: LAB without LittleCMS
        raise UserError(f"mode {image.mode} cannot become RGB ({error}): save the image as RGB") from None


def small_sample_colour_key(image: Image.Image) -> int | None:
    """The transparent grey of a 2-bit or 4-bit PNG that is not loaded yet, scaled to 8 bits; None for other images.

    Pillow scales the pixels of such a file to 8 bits when it loads them, but not the colour key.
    """
    tile = getattr(image, "tile", None)
    step = SMALL_SAMPLES.get(str(tile[0][3])) if image.format == "PNG" and tile else None
    key = image.info.get("transparency")
    return step * key if step is not None and isinstance(key, int) else None


def is_transparent(image: Image.Image) -> bool:
    """Whether any pixel may be transparent, by an alpha channel, the palette or a colour key."""
    if "transparency" in image.info and image.mode in ("1", "L", "P", "RGB"):
        return True
    if image.mode == "P":
        return image.palette is not None and image.palette.mode.endswith("A")
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa")


def to_rgba(image: Image.Image, colour_key: int | None) -> Image.Image:
    """The image in RGBA; pixels of the colour key become transparent."""
    key = image.info.get("transparency") if colour_key is None else colour_key
    if image.mode == "La":
        return image.convert("LA").convert("RGBA")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        key = tuple(value >> 8 for value in key)  # in a file with 16 bits a channel, of which Pillow keeps the upper 8
    if key == image.info.get("transparency"):
        return image.convert("RGBA")
    keyed = image.copy()
    keyed.info["transparency"] = key
    return keyed.convert("RGBA")


def on_white(rgba: Image.Image) -> Image.Image:
    """The image in RGB, laid on a white background."""
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")


def grey_to_rgb(image: Image.Image) -> Image.Image:
    """A grey image of 12, 16 or 32 bits, integer or float, in RGB with 8 bits; transparent pixels become white."""
    value_HW = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode in SIXTEEN_BIT:
        if image.format == "FITS":
            raise UserError("16-bit FITS images hold signed values, whose white is not known: save it as 8-bit grey")
        grey_HW = scale_to_8_bits(value_HW, WHITE_12_BIT if tags.get(BITS_PER_SAMPLE) == (12,) else WHITE_16_BIT)
    elif image.mode == "I" and image.format in ("PNG", "PPM"):  # whose integers have at most 16 bits
        grey_HW = scale_to_8_bits(value_HW, WHITE_16_BIT)
    else:
        grey_HW = np.rint(value_HW * factor_to_8_bits(value_HW)).clip(0, 255).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey_HW = 255 - grey_HW
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey_HW = np.where(value_HW == key, np.uint8(255), grey_HW)
    return Image.fromarray(grey_HW).convert("RGB")


def check_not_negative(image: Image.Image) -> None:
    """Raises UserError for a signed 8-bit image with values below zero."""
    value_HW = np.asarray(image).view(np.int8)
    if value_HW.min() < 0:
        raise UserError(
            f"signed 8-bit values from {value_HW.min()} to {value_HW.max()}, expected none below 0, as it is not known "
            "which value is white: save the image with unsigned 8 bits"
        )


def scale_to_8_bits(value_HW: npt.NDArray[Any], white: int) -> npt.NDArray[np.uint8]:
    """Integers 0..white scaled to 0..255, rounded down; where none is above 255 they are 8-bit values already."""
    white = white if value_HW.max() > 255 else 255
    grey_HW: npt.NDArray[np.uint8] = (value_HW.astype(np.int64).clip(0, white) * 255 // white).astype(np.uint8)
    return grey_HW


def factor_to_8_bits(value_HW: npt.NDArray[np.float32] | npt.NDArray[np.int32]) -> float:
    """The factor that scales values to 0..255: 255 for floats in 0..1, 1 for values in 0..255.

    Raises UserError for all other values.
    """
    is_float = np.issubdtype(value_HW.dtype, np.floating)
    smallest, largest = float(value_HW.min()), float(value_HW.max())
    kind = "float" if is_float else "32-bit or signed"
    if np.isnan(smallest):  # a NaN anywhere makes both NaN
        raise UserError("float values that are not a number (NaN): write a number in their place")
    if np.isfinite(smallest) and np.isfinite(largest):
        if is_float and smallest >= -UNIT_TOLERANCE and largest <= 1 + UNIT_TOLERANCE:
            return 255.0
        is_byte = smallest >= -BYTE_TOLERANCE and largest <= 255 + BYTE_TOLERANCE
        if is_byte and (not is_float or largest >= LEAST_BYTE_PEAK):
            return 1.0
    expected = "0..1 or 0..255" if is_float else "0..255"
    raise UserError(
        f"{kind} values from {smallest:g} to {largest:g}, expected {expected}, as it is not known which value is "
        "white: save the image with 8 or unsigned 16 bits"
    )
