"""Lets a transformer see images of another size, or patches that overlap, by interpolating its position embeddings."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import nn

from edgeembed.errors import UserError


def set_input_size(tower: Any, size_px: int, patch_stride: int | None = None) -> None:
    """Prepares a tower for squares of `size_px`; convolutional towers take any size as they are.

    Position embeddings are resampled (bicubic, antialiased) to the new grid; where the grid is the old one nothing
    changes. A stride below the patch size makes patches overlap (Shao & Cui 2022, 1st place of GUIE). The order of
    calls matters: each resamples what it finds. Raises UserError for towers that cannot do it.
    """
    tower = getattr(tower, "trunk", tower)  # open_clip's TimmModel
    if hasattr(tower, "conv1") and hasattr(tower, "positional_embedding"):
        patch_px = tower.conv1.kernel_size[0]
        old, new = tower.grid_size, grid(size_px, patch_px, patch_stride)
        embedding_1TD = tower.positional_embedding[None]
        if tuple(old) != new:
            tower.positional_embedding = resampled(embedding_1TD, old, new, num_prefix_tokens=1, squeeze=True)
        tower.conv1.stride = (patch_stride or patch_px,) * 2
        tower.image_size, tower.grid_size = (size_px, size_px), new
    elif hasattr(tower, "patch_embed") and hasattr(tower, "pos_embed"):
        patch = tower.patch_embed
        if not hasattr(patch, "proj") or not hasattr(patch, "grid_size") or getattr(tower, "rope", None) is not None:
            raise_unsupported(tower)
        patch_px = patch.proj.kernel_size[0]
        old, new = patch.grid_size, grid(size_px, patch_px, patch_stride)
        if tower.pos_embed is not None and tuple(old) != new:
            prefix = 0 if getattr(tower, "no_embed_class", False) else getattr(tower, "num_prefix_tokens", 0)
            tower.pos_embed = resampled(tower.pos_embed, old, new, num_prefix_tokens=prefix)
        patch.proj.stride = (patch_stride or patch_px,) * 2
        patch.img_size, patch.grid_size, patch.num_patches = (size_px, size_px), new, new[0] * new[1]
    elif patch_stride is not None:
        raise UserError(f"image.patch_stride = {patch_stride}: {type(tower).__name__} has no patches to move apart")
    elif hasattr(tower, "set_input_size"):
        tower.set_input_size(img_size=(size_px, size_px))


def grid(size_px: int, patch_px: int, patch_stride: int | None) -> tuple[int, int]:
    stride = patch_stride or patch_px
    if stride > patch_px:
        raise UserError(f"image.patch_stride = {stride}: expected at most the patch size, {patch_px}")
    if size_px < patch_px:
        raise UserError(f"image.size_px = {size_px}: smaller than a patch of {patch_px}")
    return ((size_px - patch_px) // stride + 1,) * 2


def resampled(
    embedding_1TD: torch.Tensor,
    old: tuple[int, int],
    new: tuple[int, int],
    *,
    num_prefix_tokens: int,
    squeeze: bool = False,
) -> nn.Parameter:
    with torch.no_grad():
        moved_1TD = resample_abs_pos_embed(
            embedding_1TD.detach(), new_size=list(new), old_size=list(old), num_prefix_tokens=num_prefix_tokens
        )
    return nn.Parameter(moved_1TD[0].clone() if squeeze else moved_1TD.clone())


def raise_unsupported(tower: nn.Module) -> None:
    raise UserError(f"image.size_px: {type(tower).__name__} is made for one size: leave it at the model's own")
