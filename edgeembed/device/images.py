"""Decodes what people really have on disk into RGB, the same way in training and on the device.

Free of torch. Orientation is applied, transparency is laid on white, every mode becomes RGB; truncated files and
decompression bombs are refused. docs/preprocessing.md says what each kind of file becomes, with test vectors.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from edgeembed.arrays import UInt8Array
from edgeembed.device.colour_modes import as_rgb, key_of_small_samples
from edgeembed.device.orientation import load_and_find_turn
from edgeembed.device.tiff import without_metadata
from edgeembed.errors import UserError

MAX_PIXELS = 178_956_970  # Pillow's own threshold of warning; above it a file is taken for a bomb

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # odd metadata; the pixels are what counts
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the limit above is what counts


class ImageError(UserError):
    """A file that cannot be decoded into an image; the message names the file and the reason."""


def load_rgb(source: str | Path | BinaryIO, *, at_least_px: int | None = None, name: str | None = None) -> Image.Image:
    """Decodes one file, or a binary file object, to an upright RGB image; of several pictures in it the first.

    `at_least_px` is for pictures to look at, never for pixels that a network embeds: the JPEG decoder may skip detail.
    The result may be smaller than the file says, but each side keeps at least that many pixels where the file has them.
    `name` is what errors call a file object. Raises ImageError for anything that is not one whole image, and for one
    whose values have no known white.
    """
    name = name or str(source)
    try:
        try:
            return decode(source, at_least_px)
        except (UserError, FileNotFoundError):
            raise
        except Exception:  # decoders raise OSError, SyntaxError, struct.error, ValueError and more
            pixels_alone = without_metadata(source)
            if pixels_alone is None:
                raise
            return decode(pixels_alone, at_least_px)
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


def decode(source: str | Path | BinaryIO, at_least_px: int | None) -> Image.Image:
    with Image.open(source) as image:
        if at_least_px is not None and image.format in ("JPEG", "MPO"):
            check_size(image)
            image.draft("RGB", (at_least_px, at_least_px))
        return to_rgb(image)


def check_size(image: Image.Image) -> None:
    """Raises UserError for an image without pixels and for one of more than are decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"{image.width} x {image.height} pixels, more than the limit of {MAX_PIXELS}: resize the image first"
        )
    if 0 in image.size:
        raise UserError(f"{image.width} x {image.height} pixels, expected at least 1 x 1")


def to_rgb(image: Image.Image) -> Image.Image:
    """Loads a picture, applies its EXIF orientation and converts any mode to RGB; transparency is laid on white.

    An image that is upright RGB comes back itself: copies would take a fifth of the time that a small JPEG does.
    Raises UserError for values that have no known white.
    """
    check_size(image)
    colour_key = key_of_small_samples(image)
    turn = load_and_find_turn(image)
    rgb = as_rgb(image, colour_key)  # before it is turned: a turned picture has lost the tags that its values follow
    return rgb if turn is None else rgb.transpose(turn)


def squash(image: Image.Image, height: int, width: int) -> UInt8Array:
    """Resizes to (height, width) without keeping the aspect, antialiased: (H, W, 3) uint8, 0..255."""
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8)


def load_pixels(path: str | Path, height: int, width: int) -> UInt8Array:
    """File to network input: (H, W, 3) uint8, from all of its pixels, as docs/preprocessing.md describes."""
    return squash(load_rgb(path), height, width)
