"""Views of images as pure functions of (seed, image, view).

A view is two things: numbers, drawn here by hashing (seed, image, view) without any state, and a rendering of them
at a given size (views.py). Teacher and student therefore see the same crop at different sizes, a resumed run sees what
the uninterrupted one would have seen, and a stored teacher target can be matched to its view at any time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgeembed.config import AugmentSection


@dataclass(frozen=True, kw_only=True)
class Views:
    """What is done to each image of a batch. `affine_B23` maps output to input in [-1, 1] coordinates."""

    affine_B23: Tensor
    brightness_B: Tensor
    contrast_B: Tensor
    saturation_B: Tensor
    square_B4: Tensor  # left, top, right, bottom of the dropped square in 0..1; all zero for none


def uniforms(seed: int, image_B: npt.NDArray[np.int64], view: int, count: int) -> npt.NDArray[np.float64]:
    """(B, count) numbers in [0, 1): splitmix64 (Steele et al. 2014) of a counter made of all arguments."""
    with np.errstate(over="ignore"):
        run = np.array([seed, view], dtype=np.uint64) * np.array(
            [0xD1342543DE82EF95, 0xDA942042E4DD58B5], dtype=np.uint64
        )
        counter = image_B.astype(np.uint64)[:, None] * np.uint64(0x2545F4914F6CDD1D) + np.arange(count, dtype=np.uint64)
        state = (counter + _mix(run[:1] + run[1:])) * np.uint64(0x9E3779B97F4A7C15)
        return (_mix(state.astype(np.uint64)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def draw_views(section: AugmentSection, *, seed: int, image_B: npt.NDArray[np.int64], view: int) -> Views:
    """The numbers of one view of each image."""
    u = uniforms(seed, image_B, view, 16)
    affine = u[:, 0] < section.affine_probability
    area = np.where(affine, between(section.scale, u[:, 1]), 1.0)
    log_aspect = np.where(affine, between((np.log(section.aspect[0]), np.log(section.aspect[1])), u[:, 2]), 0.0)
    angle = np.where(affine, np.deg2rad(section.rotation_degrees) * (2 * u[:, 3] - 1), 0.0)
    half_width = np.sqrt(area * np.exp(log_aspect))
    half_height = np.sqrt(area / np.exp(log_aspect))
    shift_x = (2 * u[:, 4] - 1) * np.abs(1 - half_width)
    shift_y = (2 * u[:, 5] - 1) * np.abs(1 - half_height)
    mirror = np.where(u[:, 6] < section.flip_probability, -1.0, 1.0)
    cos, sin = np.cos(angle), np.sin(angle)
    shear = np.tan(np.where(affine, np.deg2rad(section.shear_degrees) * (2 * u[:, 15] - 1), 0.0))
    across, down = half_width * mirror, half_height
    matrix = np.stack(
        [cos * across, (shear * cos - sin) * down, shift_x, sin * across, (shear * sin + cos) * down, shift_y], axis=1
    ).reshape(-1, 2, 3)
    coloured = u[:, 7] < section.colour_probability
    brightness, contrast, saturation = (
        np.where(coloured, 1.0 + strength * (2 * u[:, 8 + i] - 1), 1.0)
        for i, strength in enumerate((section.brightness, section.contrast, section.saturation))
    )
    side = np.where(u[:, 11] < section.drop_square_probability, between(section.drop_square_side, u[:, 12]), 0.0)
    left, top = u[:, 13] * (1 - side), u[:, 14] * (1 - side)
    square = np.stack([left, top, left + side, top + side], axis=1) * (side > 0)[:, None]
    as_tensor = [torch.from_numpy(x.astype(np.float32)) for x in (matrix, brightness, contrast, saturation, square)]
    return Views(
        affine_B23=as_tensor[0],
        brightness_B=as_tensor[1],
        contrast_B=as_tensor[2],
        saturation_B=as_tensor[3],
        square_B4=as_tensor[4],
    )


def between(limits: tuple[float, float], u: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return limits[0] + (limits[1] - limits[0]) * u
