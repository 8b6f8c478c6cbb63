"""Decodes image files to RGB, in the same way in training and on the device.

The EXIF orientation is applied, transparency is laid on white, and every mode becomes RGB; truncated files and
decompression bombs are refused. docs/preprocessing.md describes what each kind of file becomes, with test vectors.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from edgeembed.arrays import UInt8Array
from edgeembed.device.colour_modes import as_rgb, small_sample_colour_key
from edgeembed.device.orientation import load_and_get_transpose
from edgeembed.device.tiff import without_metadata
from edgeembed.errors import UserError

MAX_PIXELS = 178_956_970  # above which Pillow warns of a decompression bomb

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # odd metadata
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `check_size` raises an error instead


class ImageError(UserError):
    """An image that cannot be decoded; the message names the file and the reason."""


def load_rgb(source: str | Path | BinaryIO, *, at_least_px: int | None = None, name: str | None = None) -> Image.Image:
    """Decodes a file, or a binary file object, to an upright RGB image; of a file with several images, the first.

    With `at_least_px` the JPEG decoder may skip detail: the result may be smaller than the image in the file, but keeps
    at least that many pixels on each side, if the file has them. Use it for thumbnails and training views, never for
    pixels that are compared or embedded on a device. `name` is the name of a file object in errors.

    Raises ImageError for anything that is not one whole image, and for values whose white is not known.
    """
    name = name or str(source)
    try:
        try:
            return open_as_rgb(source, at_least_px)
        except (UserError, FileNotFoundError):
            raise
        except Exception:  # decoders raise OSError, SyntaxError, struct.error, ValueError and more
            without_tags = without_metadata(source)
            if without_tags is None:
                raise
            return open_as_rgb(without_tags, at_least_px)
    except UserError as error:
        raise ImageError(f"{name}: {error}") from None
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: more pixels than the limit of {MAX_PIXELS}: resize the image first") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a readable image (of no format that Pillow knows, or damaged)") from None
    except Exception as error:
        raise ImageError(f"{name}: not a readable image ({type(error).__name__}: {error})") from None


def open_as_rgb(source: str | Path | BinaryIO, at_least_px: int | None) -> Image.Image:
    """Decodes a file as `load_rgb` does, with the errors that Pillow raises."""
    with Image.open(source) as image:
        if at_least_px is not None and image.format in ("JPEG", "MPO"):
            check_size(image)
            image.draft("RGB", (at_least_px, at_least_px))
        return to_rgb(image)


def check_size(image: Image.Image) -> None:
    """Raises UserError for an image without pixels and for one of more than `MAX_PIXELS`."""
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"{image.width} x {image.height} pixels, more than the limit of {MAX_PIXELS}: resize the image first"
        )
    if 0 in image.size:
        raise UserError(f"{image.width} x {image.height} pixels, expected at least 1 x 1")


def to_rgb(image: Image.Image) -> Image.Image:
    """Loads an image, applies its EXIF orientation and converts any mode to RGB; transparency is laid on white.

    An image that is upright RGB is returned itself: a copy would take a fifth of the time of decoding a small JPEG.
    Raises UserError for values whose white is not known.
    """
    check_size(image)
    colour_key = small_sample_colour_key(image)
    transpose = load_and_get_transpose(image)
    rgb = as_rgb(image, colour_key)  # first, because a transposed image has lost the tags that this needs
    return rgb if transpose is None else rgb.transpose(transpose)


def squash(image: Image.Image, height: int, width: int) -> UInt8Array:
    """Pixels (height, width, 3), uint8, of an image resized without keeping its aspect ratio; antialiased."""
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8)


def load_pixels(path: str | Path, height: int, width: int) -> UInt8Array:
    """The network's input for a file: (height, width, 3) uint8, computed as docs/preprocessing.md describes."""
    return squash(load_rgb(path), height, width)
