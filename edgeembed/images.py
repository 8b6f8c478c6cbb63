"""Decodes what people really have on disk into RGB, the same way in training and on the device.

Free of torch. Orientation is applied, alpha is laid on white, CMYK, grey and palette images become RGB,
truncated files and decompression bombs are refused.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from edgeembed.errors import UserError

MAX_PIXELS = 178_956_970  # Pillow's own threshold of warning; above it a file is taken for a bomb

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # odd metadata; the pixels are what counts

UInt8Array = npt.NDArray[np.uint8]


class ImageError(UserError):
    """A file that cannot be decoded into an image; the message names the file and the reason."""


def load_rgb(path: str | Path, *, at_least_px: int | None = None) -> Image.Image:
    """Decodes one file to an upright RGB image.

    `at_least_px` lets the JPEG decoder skip detail: the result may be smaller than the file says, but
    each side keeps at least that many pixels where the file has them.
    Raises ImageError for anything that is not one whole image.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    f"{path}: {image.width} x {image.height} pixels, more than the limit of {MAX_PIXELS}: "
                    "resize the image first"
                )
            if at_least_px is not None and image.format == "JPEG":
                image.draft("RGB", (at_least_px, at_least_px))
            image.load()
            return to_rgb(image)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError and more
        raise ImageError(f"{path}: not a readable image ({type(error).__name__}: {error})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation and converts any mode to RGB; transparency is laid on white.

    An image that is upright RGB comes back itself: copies would take a fifth of the time that a small JPEG does.
    """
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    upright = ImageOps.exif_transpose(image) if turned else image
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if upright.mode in ("I", "I;16", "I;16L", "I;16B", "F"):
        values = np.asarray(upright, dtype=np.float32)
        top = 65535.0 if values.max(initial=0.0) > 255.0 else 255.0
        return Image.fromarray((values.clip(0.0, top) * (255.0 / top)).astype(np.uint8)).convert("RGB")
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def squash(image: Image.Image, height: int, width: int) -> UInt8Array:
    """Resizes to (height, width) without keeping the aspect, antialiased: (H, W, 3) uint8, 0..255."""
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8)


def load_pixels(path: str | Path, height: int, width: int) -> UInt8Array:
    """File to network input: (H, W, 3) uint8. JPEG detail beyond twice the input is never decoded."""
    return squash(load_rgb(path, at_least_px=2 * max(height, width)), height, width)
