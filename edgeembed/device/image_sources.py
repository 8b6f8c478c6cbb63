"""Decodes every kind of image source (path, bytes, file object, PIL image, array) to pixels of a given size."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image

from edgeembed.arrays import IntArray, UInt8Array
from edgeembed.device.image_files import find_images
from edgeembed.device.images import ImageError, load_rgb, squash, to_rgb
from edgeembed.device.runtimes import available_cores
from edgeembed.errors import UserError

log = logging.getLogger(__name__)

ImageSource: TypeAlias = str | Path | bytes | BinaryIO | Image.Image | UInt8Array
"""A path, an encoded file as bytes or as a binary file object, a PIL image, or a uint8 array of RGB or grey pixels."""

MAX_DECODERS = 4
DECODED_AHEAD = 16  # images that wait for the network
SINGLE_IMAGE_TYPES = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
EXPECTED_TYPES = (
    "a path, bytes, a binary file object, a PIL image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4), 0..255, "
    "RGB or RGBA"
)


def as_images(given: Any) -> Iterable[ImageSource]:
    """The image sources in an argument: a single one, a folder, a batch (N, H, W, 3), an array of paths or an iterable.

    Raises UserError for a folder without images, and for an argument of another type.
    """
    if isinstance(given, (str, os.PathLike)) and os.path.isdir(given):
        files = find_images(Path(given))
        if not files:
            raise UserError(f"{os.fspath(given)}: the folder holds no images")
        return files
    if isinstance(given, np.ndarray) and given.dtype.kind in "OU" and given.ndim == 1:
        return list(given)  # paths
    if isinstance(given, np.ndarray) and given.ndim != 4:
        return [given]
    if isinstance(given, SINGLE_IMAGE_TYPES) or hasattr(given, "read"):
        return [given]
    if not isinstance(given, Iterable):
        raise UserError(f"images of type {type(given).__name__}: expected {EXPECTED_TYPES}, or an iterable of these")
    return given


def decode_ahead(
    images: Iterable[ImageSource], shape_of: Callable[[ImageSource], tuple[int, int]]
) -> Iterator[UInt8Array | ImageError]:
    """Yields (height, width, 3) uint8 for each image, in order, or the error of one that cannot be decoded.

    Threads decode a few images ahead. `shape_of` gives the height and width that an image is resized to.
    """
    if isinstance(images, (list, tuple)) and len(images) < 2:
        for image in images:
            yield decode_image(image, 0, shape_of)
        return
    from concurrent.futures import Future, ThreadPoolExecutor  # this import would slow down a single image

    ahead: deque[Future[UInt8Array | ImageError]] = deque()
    # `shape_of` may suppress warnings while it reads headers, in several threads at once. Warning filters belong to the
    # process: of overlapping blocks, the last to end would leave its own filters behind. This block restores them.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(MAX_DECODERS, available_cores())) as pool:
        warnings.simplefilter("ignore")
        for position, image in enumerate(images):
            # A caller that reads a camera may write the next frame into the same array.
            kept = image.copy() if isinstance(image, np.ndarray) else image
            ahead.append(pool.submit(decode_image, kept, position, shape_of))
            if len(ahead) > DECODED_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def decode_all(images: Sequence[ImageSource], height: int, width: int) -> tuple[UInt8Array, IntArray]:
    """Pixels (M, height, width, 3) of the M images that can be decoded, and their positions (M,) in `images`.

    The log names every other image and the reason.
    """
    pixels: list[UInt8Array] = []
    positions: list[int] = []
    for position, decoded in enumerate(decode_ahead(images, lambda _: (height, width))):
        if isinstance(decoded, ImageError):
            log.warning("skipped: %s", decoded)
        else:
            pixels.append(decoded)
            positions.append(position)
    pixels_MHWC = np.stack(pixels) if pixels else np.zeros((0, height, width, 3), np.uint8)
    return pixels_MHWC, np.array(positions, np.int64)


def decode_image(
    image: ImageSource, position: int, shape_of: Callable[[ImageSource], tuple[int, int]]
) -> UInt8Array | ImageError:
    """Pixels (height, width, 3) of one image, or the error where it cannot be decoded.

    Raises UserError for an object that is no image source: another type, or an array of another shape or type.
    """
    name = name_of(image, position)
    try:
        return squash(open_image(image, name), *shape_of(image))
    except ImageError as error:
        return error


def open_image(image: ImageSource, name: str) -> Image.Image:
    """Decodes a source to an upright RGB image. Raises ImageError where that fails, UserError for another type."""
    if isinstance(image, np.ndarray):
        return to_rgb(Image.fromarray(check_image_array(image, name)))
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except UserError as error:
            raise ImageError(f"{name}: {error}") from None
        except Exception as error:  # PIL reads the file only now, so that it may turn out damaged: as in `load_rgb`
            raise ImageError(f"{name}: cannot be decoded ({type(error).__name__}: {error})") from None
    if isinstance(image, (str, os.PathLike)):
        if os.path.isdir(image):
            raise UserError(f"{name}: a folder among images: give a folder alone")
        return load_rgb(Path(image))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return load_rgb(io.BytesIO(image), name=name)
    if not hasattr(image, "read") or isinstance(image, io.TextIOBase):
        raise UserError(f"{name} is of type {type(image).__name__}: expected {EXPECTED_TYPES}")
    try:
        if image.seekable():
            image.seek(0)
        content = image.read()
    except (OSError, ValueError) as error:  # ValueError: a closed file
        raise ImageError(f"{name}: cannot be read ({error})") from None
    return load_rgb(io.BytesIO(content), name=name)


def check_image_array(array: UInt8Array, name: str) -> UInt8Array:
    """A contiguous array. Raises UserError for anything but uint8 (H, W), (H, W, 3) or (H, W, 4), H and W above 0."""
    expected = "expected a uint8 array (H, W), (H, W, 3) or (H, W, 4), 0..255"
    if array.dtype != np.uint8:
        hint = ": multiply values from 0 to 1 by 255 and round" if np.issubdtype(array.dtype, np.floating) else ""
        raise UserError(f"{name} is an array of {array.dtype}: {expected}{hint}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        hint = ": move the channels to the end" if array.ndim == 3 and array.shape[0] in (3, 4) else ""
        raise UserError(f"{name} is an array of shape {array.shape}: {expected}{hint}")
    return np.ascontiguousarray(array)


def name_of(image: object, position: int) -> str:
    """The name of an image in error messages: its path, where it has one, and its position among the images."""
    if isinstance(image, (str, os.PathLike)):
        return str(image)
    path = getattr(image, "filename", None) or getattr(image, "name", None)
    return f"{path} (image {position})" if isinstance(path, str) and path else f"image {position}"
