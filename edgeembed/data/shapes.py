"""Chooses the height and width that each image is resized to: one square for all, or a shape near its proportions."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgeembed.device.orientation import SIDE_SWAPPING_ORIENTATIONS, orientation_of

Shapes = npt.NDArray[np.int64]  # (N, 2): height and width in pixels

ASPECTS = (1 / 2, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 2.0)  # width over height; all images of a batch share one of them
STEP_PX = 16


def square_shapes(num_images: int, size_px: int) -> Shapes:
    """The same square (N, 2) for every image."""
    return np.full((num_images, 2), size_px, dtype=np.int64)


def aspect_shapes(files: Sequence[str], size_px: int, *, workers: int) -> Shapes:
    """Height and width for each file (N, 2), with the nearest of `ASPECTS`; an unreadable file counts as square."""
    shapes_A2 = np.array([shape_of(aspect, size_px) for aspect in ASPECTS])
    with ThreadPoolExecutor(max(1, workers)) as pool:
        aspects = np.array(list(pool.map(read_aspect, files)))
    nearest = np.abs(np.log(aspects)[:, None] - np.log(ASPECTS)[None]).argmin(axis=1)
    shapes_N2: Shapes = shapes_A2[nearest]
    return shapes_N2


def shape_of(aspect: float, size_px: int) -> tuple[int, int]:
    """Height and width with an area of about `size_px` squared, in multiples of 16; a square is exactly `size_px`."""
    if aspect == 1.0:
        return size_px, size_px
    height, width = size_px / aspect**0.5, size_px * aspect**0.5
    return max(1, round(height / STEP_PX)) * STEP_PX, max(1, round(width / STEP_PX)) * STEP_PX


@functools.cache
def read_aspect(file: str) -> float:
    """Width over height of an image in its EXIF orientation; only the header is read."""
    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("ignore")
            width, height = image.size
            sideways = orientation_of(image) in SIDE_SWAPPING_ORIENTATIONS
    except Exception:  # any error comes again, and is reported, when the file is decoded
        return 1.0
    return height / width if sideways else width / height
