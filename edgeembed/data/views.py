"""Renders views: crops, colour changes and erased squares, and mixes images with CutMix and mixup."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeembed.arrays import UInt8Array
from edgeembed.config import MixSection
from edgeembed.data.augment import ViewParameters, lerp, uniforms

RENDERING_VERSION = 2
"""To be increased whenever the pixels of a view change: targets stored for other pixels are then not used."""

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

cv2.setNumThreads(1)  # images are small, and a second thread pool would compete with torch's


def render_views(canvas_BCHW: Tensor, views: ViewParameters, shape_px: int | tuple[int, int]) -> Tensor:
    """Renders views of uint8 canvases: (B, 3, H, W), 0..255, channels_last. `shape_px`: (H, W), or one side."""
    shape_px = (shape_px, shape_px) if isinstance(shape_px, int) else shape_px
    render = render_on_cpu if canvas_BCHW.device.type == "cpu" else render_on_device
    return render(canvas_BCHW, views, shape_px)


def render_on_cpu(canvas_BCHW: Tensor, views: ViewParameters, shape_px: tuple[int, int]) -> Tensor:
    """Renders with OpenCV, in uint8: several times faster than torch on a CPU.

    Pixels differ from those of `render_on_device` by rounding: to 8 bits, and of coordinates to 1/32 pixel.
    """
    canvas_BHWC = np.ascontiguousarray(canvas_BCHW.permute(0, 2, 3, 1).numpy())
    height, width = shape_px
    view_BHWC = np.empty((len(canvas_BHWC), height, width, 3), np.uint8)
    affine_B23 = views.affine_B23.numpy().astype(np.float64)
    border = cv2.BORDER_CONSTANT if views.border == "black" else cv2.BORDER_REFLECT
    brightness_B, contrast_B, saturation_B = (
        values.numpy().astype(np.float64) for values in (views.brightness_B, views.contrast_B, views.saturation_B)
    )
    square_B4 = views.square_B4.numpy() * np.array([width, height, width, height])  # in pixels
    for view_HWC, canvas_HWC, affine_23, square_4, *colour in zip(
        view_BHWC, canvas_BHWC, affine_B23, square_B4, brightness_B, contrast_B, saturation_B, strict=True
    ):
        source_1CHW = shrink(torch.from_numpy(canvas_HWC).permute(2, 0, 1)[None], affine_23, shape_px)
        source_HWC = np.ascontiguousarray(source_1CHW[0].permute(1, 2, 0).numpy())
        to_source_23 = pixel_affine(affine_23, source_HWC.shape[:2], shape_px)
        four_HW4 = cv2.cvtColor(source_HWC, cv2.COLOR_RGB2RGBA)  # OpenCV warps 4 channels in half the time of 3
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        warped_HW4 = cv2.warpAffine(four_HW4, to_source_23, (width, height), None, flags, border)
        cv2.cvtColor(warped_HW4, cv2.COLOR_RGBA2RGB, view_HWC)
        if colour != [1.0, 1.0, 1.0]:
            recolour(view_HWC, *colour)
        if square_4.any():
            left, top, right, bottom = np.ceil(square_4 - 0.5).astype(int)  # pixels whose centre lies inside
            view_HWC[top:bottom, left:right] = 0
    return torch.from_numpy(view_BHWC).permute(0, 3, 1, 2)


def shrink(canvas_1CHW: Tensor, affine_23: np.ndarray, view_px: tuple[int, int]) -> Tensor:
    """Downscales an image (1, C, H, W) to the resolution of its view, antialiased as in evaluation; never upscales.

    Bilinear warping reads only four pixels for each output pixel. Where the view has fewer pixels than its part of the
    image, warping alone would skip pixels and turn fine detail into noise.
    """
    canvas_px = canvas_1CHW.shape[2], canvas_1CHW.shape[3]
    view_to_canvas_23 = pixel_affine(affine_23, canvas_px, view_px)
    ratio_x, ratio_y = np.hypot(view_to_canvas_23[:, 0], view_to_canvas_23[:, 1])  # canvas pixels per view pixel
    height, width = (
        max(1, round(side / max(1.0, ratio))) for side, ratio in zip(canvas_px, (ratio_y, ratio_x), strict=True)
    )
    if (height, width) == canvas_px:
        return canvas_1CHW
    return F.interpolate(canvas_1CHW, (height, width), mode="bilinear", antialias=True)


def pixel_affine(affine_23: np.ndarray, canvas_px: tuple[int, ...], view_px: tuple[int, int]) -> np.ndarray:
    """Converts an affine map from view to canvas (2, 3) from [-1, 1] coordinates to pixel coordinates."""
    (in_height, in_width), (out_height, out_width) = canvas_px, view_px  # the map goes from view (out) to canvas (in)
    # As with align_corners=False: -1 and 1 are the outer edges of the image, not pixel centres.
    to_unit = np.array(
        [[2 / out_width, 0, 1 / out_width - 1], [0, 2 / out_height, 1 / out_height - 1], [0, 0, 1]], np.float64
    )
    to_pixels = np.array([[in_width / 2, 0, (in_width - 1) / 2], [0, in_height / 2, (in_height - 1) / 2]], np.float64)
    matrix_23: np.ndarray = to_pixels @ np.concatenate([affine_23, [[0.0, 0.0, 1.0]]]) @ to_unit
    return matrix_23


def recolour(view_HWC: UInt8Array, brightness: float, contrast: float, saturation: float) -> None:
    """Applies the three factors in place, as one 3 x 4 matrix; contrast keeps the mean grey of the image."""
    mean_grey = brightness * float(np.dot(LUMA, cv2.mean(view_HWC)[:3])) if contrast != 1.0 else 0.0
    mixed_33 = saturation * np.eye(3) + (1.0 - saturation) * np.tile(LUMA, (3, 1))
    offset_31 = np.full((3, 1), (1.0 - contrast) * mean_grey)
    view_HWC[:] = cv2.transform(view_HWC, np.hstack([contrast * brightness * mixed_33, offset_31]))


def render_on_device(canvas_BCHW: Tensor, views: ViewParameters, shape_px: tuple[int, int]) -> Tensor:
    """Renders with torch on the device of the canvases, to float32 pixels."""
    height, width = shape_px
    device = canvas_BCHW.device
    num = canvas_BCHW.shape[0]
    grid_BHW2 = F.affine_grid(views.affine_B23.to(device), [num, 3, height, width], align_corners=False)
    pixels_BCHW = canvas_BCHW.to(torch.float32).contiguous(memory_format=torch.channels_last)
    padding = "zeros" if views.border == "black" else "reflection"
    # One image at a time: `shrink` gives each image its own size.
    warped = [
        F.grid_sample(
            shrink(pixels_1CHW, affine_23, shape_px),
            grid_1HW2,
            mode="bilinear",
            padding_mode=padding,
            align_corners=False,
        )
        for pixels_1CHW, affine_23, grid_1HW2 in zip(
            pixels_BCHW.split(1), views.affine_B23.numpy().astype(np.float64), grid_BHW2.split(1), strict=True
        )
    ]
    image = torch.cat(warped) if warped else pixels_BCHW.new_zeros(0, 3, height, width)

    def per_image(values_B: Tensor) -> Tensor:
        return values_B.to(device).view(-1, 1, 1, 1)

    # The formula of `recolour`: brightness, then saturation, then contrast around the mean grey.
    image = image * per_image(views.brightness_B)
    grey_B1HW = (image * torch.tensor(LUMA, device=device).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    mean_B111 = grey_B1HW.mean(dim=(2, 3), keepdim=True)
    contrast, saturation = per_image(views.contrast_B), per_image(views.saturation_B)
    image = contrast * (saturation * image + (1 - saturation) * grey_B1HW) + (1 - contrast) * mean_B111
    image = image.clamp(0.0, 255.0)
    if bool(views.square_B4.any()):
        image = image.masked_fill(square_mask(views.square_B4.to(device), height, width), 0.0)
    return image.contiguous(memory_format=torch.channels_last)


def square_mask(square_B4: Tensor, height: int, width: int) -> Tensor:
    """Whether each pixel is inside the square of its image: bool (B, 1, H, W)."""
    row, column = ((torch.arange(side, device=square_B4.device) + 0.5) / side for side in (height, width))
    left, top, right, bottom = square_B4.unbind(dim=1)
    inside_x = (column >= left[:, None]) & (column < right[:, None])
    inside_y = (row >= top[:, None]) & (row < bottom[:, None])
    return (inside_y[:, :, None] & inside_x[:, None, :])[:, None]


def mix_views(
    image_BCHW: Tensor,
    other_BCHW: Tensor,
    section: MixSection,
    *,
    seed: int,
    image_B: npt.NDArray[np.int64],
    view: int | npt.NDArray[np.int64],
) -> tuple[Tensor, Tensor]:
    """Mixes some of the images with another one, by CutMix (Yun et al. 2019) or mixup (Zhang et al. 2018).

    Returns the images and, for each, the share of the other image in it, (B,), 0..1.
    """
    # Columns 16 to 20: the first 16 are those of `draw_views`.
    u = uniforms(seed, image_B, view, 21)[:, 16:]
    side = np.where(u[:, 0] < section.cutmix_probability, lerp(section.cutmix_side, u[:, 1]), 0.0)
    square = np.stack([u[:, 2] * (1 - side), u[:, 3] * (1 - side)], axis=1)
    square = np.concatenate([square, square + side[:, None]], axis=1).astype(np.float32)
    pasted = square_mask(torch.from_numpy(square).to(image_BCHW.device), *image_BCHW.shape[2:])
    mixed = torch.where(pasted, other_BCHW, image_BCHW)
    # Of whole pixels, so that it differs a little from the drawn area.
    share_B = pasted.float().mean(dim=(1, 2, 3))
    # CutMix takes the lower end of the first column, mixup the upper: no image gets both.
    blended = u[:, 0] >= 1.0 - section.mixup_probability
    if blended.any():
        blend = np.where(blended, lerp(section.mixup_share, u[:, 4]), 0.0).astype(np.float32)
        blend_B = torch.from_numpy(blend).to(image_BCHW.device)
        at = blend_B.nonzero()[:, 0]
        sum_BCHW = torch.lerp(image_BCHW[at].float(), other_BCHW[at].float(), blend_B[at, None, None, None])
        mixed[at] = (sum_BCHW if mixed.is_floating_point() else sum_BCHW.round_()).to(mixed.dtype)
        share_B = share_B + blend_B
    return mixed, share_B


def are_mixed(
    section: MixSection, *, seed: int, image_B: npt.NDArray[np.int64], view: int | npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Whether `mix_views` mixes each image: bool (B,)."""
    u_B = uniforms(seed, image_B, view, 17)[:, 16]
    mixed_B: npt.NDArray[np.bool_] = (u_B < section.cutmix_probability) | (u_B >= 1.0 - section.mixup_probability)
    return mixed_B
