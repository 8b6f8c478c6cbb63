"""Draws the random parameters of augmented views as pure functions of (seed, image, view).

A view is an augmented copy of an image. Its parameters (crop, rotation, colour, erased square) are drawn here by
hashing (seed, image, view), without any state; views.py renders them at a given size. So teacher and student see the
same crop at different sizes, a resumed run sees the views of an uninterrupted one, and a stored teacher target matches
its view.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgeembed.config import AugmentSection


@dataclass(frozen=True, kw_only=True)
class ViewParameters:
    """The augmentation of each image of a batch. `affine_B23` maps view to image coordinates, both in [-1, 1]."""

    affine_B23: Tensor
    brightness_B: Tensor
    contrast_B: Tensor
    saturation_B: Tensor
    square_B4: Tensor  # left, top, right, bottom of the erased square in 0..1; all zero for none
    border: Literal["reflect", "black"] = "reflect"


def uniforms(
    seed: int, image_B: npt.NDArray[np.int64], view: int | npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float64]:
    """Uniform random numbers in [0, 1), (B, count): splitmix64 (Steele et al. 2014) of a counter made of all arguments.

    `view` is the number of the view: one for all images, or one for each, (B,).
    """
    # 64-bit products wrap around on purpose. The odd factors send seeds, views and images far apart.
    with np.errstate(over="ignore"):
        view_B = np.broadcast_to(np.asarray(view, dtype=np.uint64), image_B.shape)
        run_B = np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + view_B * np.uint64(0xDA942042E4DD58B5)
        counter = image_B.astype(np.uint64)[:, None] * np.uint64(0x2545F4914F6CDD1D) + np.arange(count, dtype=np.uint64)
        state = (counter + _scramble(run_B)[:, None]) * np.uint64(0x9E3779B97F4A7C15)
        # The upper 53 bits: as many as a float64 holds exactly.
        return (_scramble(state.astype(np.uint64)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _scramble(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of splitmix64, which mixes all bits of a counter."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def draw_views(
    section: AugmentSection, *, seed: int, image_B: npt.NDArray[np.int64], view: int | npt.NDArray[np.int64]
) -> ViewParameters:
    """Draws the parameters of one view of each image; `view` is its number, for all images (int) or for each (B,)."""
    # Every parameter has its own column, used or not: switching one off does not change the others.
    u = uniforms(seed, image_B, view, 16)
    # One random number decides on both crop and rotation: with equal probabilities, a view has both or neither.
    cropped, affine = u[:, 0] < section.crop_probability, u[:, 0] < section.affine_probability
    half_width, half_height = (np.where(cropped, side, 1.0) for side in crop_sides(section, u[:, 1], u[:, 2]))
    angle = np.where(affine, np.deg2rad(section.rotation_degrees) * (2 * u[:, 3] - 1), 0.0)
    # `abs`: where the view is larger than the image, the shift keeps the whole image inside the view.
    shift_x = (2 * u[:, 4] - 1) * np.abs(1 - half_width)
    shift_y = (2 * u[:, 5] - 1) * np.abs(1 - half_height)
    mirror = np.where(u[:, 6] < section.flip_probability, -1.0, 1.0)
    cos, sin = np.cos(angle), np.sin(angle)
    shear = np.tan(np.where(affine, np.deg2rad(section.shear_degrees) * (2 * u[:, 15] - 1), 0.0))
    across, down = half_width * mirror, half_height
    # Rotation x shear x size of the crop: from coordinates of the view to those of the image.
    matrix = np.stack(
        [cos * across, (shear * cos - sin) * down, shift_x, sin * across, (shear * sin + cos) * down, shift_y], axis=1
    ).reshape(-1, 2, 3)
    coloured = u[:, 7] < section.colour_probability
    brightness, contrast, saturation = (
        np.where(coloured, 1.0 + strength * (2 * u[:, 8 + i] - 1), 1.0)
        for i, strength in enumerate((section.brightness, section.contrast, section.saturation))
    )
    side = np.where(u[:, 11] < section.drop_square_probability, lerp(section.drop_square_side, u[:, 12]), 0.0)
    left, top = u[:, 13] * (1 - side), u[:, 14] * (1 - side)
    square = np.stack([left, top, left + side, top + side], axis=1) * (side > 0)[:, None]
    as_tensor = [torch.from_numpy(x.astype(np.float32)) for x in (matrix, brightness, contrast, saturation, square)]
    return ViewParameters(
        affine_B23=as_tensor[0],
        brightness_B=as_tensor[1],
        contrast_B=as_tensor[2],
        saturation_B=as_tensor[3],
        square_B4=as_tensor[4],
        border=section.border,
    )


def crop_sides(
    section: AugmentSection, u_B: npt.NDArray[np.float64], v_B: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Width and height (B,) of crops as multiples of the image's, from uniform numbers `u_B` and `v_B` in [0, 1)."""
    if section.crop_side is not None:
        side_B = lerp(section.crop_side, u_B)
        return side_B, lerp(section.crop_side, v_B) if section.crop_per_axis else side_B
    area_B = lerp(section.scale, u_B)
    # Uniform in the logarithm, so that 3:4 is as likely as 4:3.
    aspect_B = np.exp(lerp((np.log(section.aspect[0]), np.log(section.aspect[1])), v_B))
    return np.sqrt(area_B * aspect_B), np.sqrt(area_B / aspect_B)


def lerp(limits: tuple[float, float], u: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Linear interpolation between two limits, at `u` in [0, 1]."""
    return limits[0] + (limits[1] - limits[0]) * u
