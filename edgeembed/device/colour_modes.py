"""Every mode that Pillow opens becomes RGB: grey of more than 8 bits by its white, transparency on white.

Floats and 32-bit integers do not say which value is white. Values from 0 to 1 and from 0 to 255 are told apart, and
anything else is refused: a wrong guess would give a black or a white picture without an error.
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
UNIT_TOLERANCE, BYTE_TOLERANCE = 1e-3, 0.5  # what a resampled picture may exceed 0..1 and 0..255 by
LEAST_BYTE_PEAK = 32.0
"""A float picture whose largest value lies between 1 and this is not one from 0 to 1, and hardly one from 0 to 255."""
SMALL_SAMPLES = {"L;2": 85, "L;4": 17}  # of PNG: what one step of a 2-bit and a 4-bit grey is in 8 bits


def as_rgb(image: Image.Image, colour_key: int | None = None) -> Image.Image:
    """A loaded picture of any mode in RGB; itself where it is RGB and opaque.

    `colour_key` replaces the transparent grey that the picture's `info` names. Raises UserError, without the picture's
    name, for values whose white is not known and for a mode that cannot become RGB.
    """
    if image.mode in (*SIXTEEN_BIT, "I", "F"):
        return grey_to_rgb(image)
    if image.mode == "L" and getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT) == (SIGNED,):  # Pillow takes -1 for 255
        refuse_below_zero(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    try:
        if is_transparent(image):
            return on_white(with_alpha(image, colour_key))
        return image.convert("RGB")
    except (ValueError, TypeError, ImportError) as error:  # ImportError: LAB without LittleCMS
        raise UserError(f"mode {image.mode} cannot become RGB ({error}): save the image as RGB") from None


def key_of_small_samples(image: Image.Image) -> int | None:
    """The transparent grey of a PNG of 2 or 4 bits that is not loaded yet, in the 8 bits that it is loaded to.

    Pillow scales the pixels of such a file, but not this number.
    """
    tile = getattr(image, "tile", None)
    step = SMALL_SAMPLES.get(str(tile[0][3])) if image.format == "PNG" and tile else None
    key = image.info.get("transparency")
    return step * key if step is not None and isinstance(key, int) else None


def is_transparent(image: Image.Image) -> bool:
    """Whether any pixel may be transparent; a colour key counts in modes that can have one."""
    if "transparency" in image.info and image.mode in ("1", "L", "P", "RGB"):
        return True
    if image.mode == "P":
        return image.palette is not None and image.palette.mode.endswith("A")
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa")


def with_alpha(image: Image.Image, colour_key: int | None) -> Image.Image:
    """The picture in RGBA."""
    key = image.info.get("transparency") if colour_key is None else colour_key
    if image.mode == "La":
        return image.convert("LA").convert("RGBA")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        key = tuple(value >> 8 for value in key)  # a file of 16 bits a channel, of which Pillow keeps the upper 8
    if key == image.info.get("transparency"):
        return image.convert("RGBA")
    keyed = image.copy()
    keyed.info["transparency"] = key
    return keyed.convert("RGBA")


def on_white(rgba: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")


def grey_to_rgb(image: Image.Image) -> Image.Image:
    """Grey of 12, 16 or 32 bits, whole or float, in 8 bits a channel; transparent pixels become white."""
    value_HW = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode in SIXTEEN_BIT:
        if image.format == "FITS":
            raise UserError("16-bit FITS images hold signed values, whose white is not known: save it as 8-bit grey")
        grey_HW = scaled_down(value_HW, WHITE_12_BIT if tags.get(BITS_PER_SAMPLE) == (12,) else WHITE_16_BIT)
    elif image.mode == "I" and image.format in ("PNG", "PPM"):  # which have no larger integers than 16 bits
        grey_HW = scaled_down(value_HW, WHITE_16_BIT)
    else:
        grey_HW = np.rint(value_HW * scale_of(value_HW)).clip(0, 255).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey_HW = 255 - grey_HW
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey_HW = np.where(value_HW == key, np.uint8(255), grey_HW)
    return Image.fromarray(grey_HW).convert("RGB")


def refuse_below_zero(image: Image.Image) -> None:
    """Raises UserError for signed 8-bit values below zero."""
    value_HW = np.asarray(image).view(np.int8)
    if value_HW.min() < 0:
        raise UserError(
            f"signed 8-bit values from {value_HW.min()} to {value_HW.max()}, expected none below 0, as it is not known "
            "which value is white: save the image with unsigned 8 bits"
        )


def scaled_down(value_HW: npt.NDArray[Any], white: int) -> npt.NDArray[np.uint8]:
    """Whole numbers 0..white to 0..255, rounded down; 8-bit values in a wider type (none above 255) stay."""
    white = white if value_HW.max() > 255 else 255
    grey_HW: npt.NDArray[np.uint8] = (value_HW.astype(np.int64).clip(0, white) * 255 // white).astype(np.uint8)
    return grey_HW


def scale_of(value_HW: npt.NDArray[np.float32] | npt.NDArray[np.int32]) -> float:
    """What brings float or 32-bit values to 0..255: 255 for those from 0 to 1 (float alone), 1 for those from 0 to 255.

    Raises UserError for all others.
    """
    is_float = np.issubdtype(value_HW.dtype, np.floating)
    least, largest = float(value_HW.min()), float(value_HW.max())
    kind = "float" if is_float else "32-bit or signed"
    if np.isnan(least):  # NaN anywhere makes both NaN
        raise UserError("float values that are not a number (NaN): write a number in their place")
    if np.isfinite(least) and np.isfinite(largest):
        if is_float and least >= -UNIT_TOLERANCE and largest <= 1 + UNIT_TOLERANCE:
            return 255.0
        is_byte = least >= -BYTE_TOLERANCE and largest <= 255 + BYTE_TOLERANCE
        if is_byte and (not is_float or largest >= LEAST_BYTE_PEAK):
            return 1.0
    expected = "0..1 or 0..255" if is_float else "0..255"
    raise UserError(
        f"{kind} values from {least:g} to {largest:g}, expected {expected}, as it is not known which value is white: "
        "save the image with 8 or unsigned 16 bits"
    )
