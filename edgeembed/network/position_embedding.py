"""Changes the input size of a transformer, or makes its patches overlap, by interpolating its position embedding."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import nn

from edgeembed.errors import UserError


def set_input_size(backbone: Any, size_px: int, patch_stride: int | None = None) -> None:
    """Changes the input size of a backbone, in place. Convolutional ones accept any size and are left as they are.

    The position embedding is resampled (bicubic, antialiased) to the new grid; if the grid stays the same, nothing
    changes. A stride below the patch size makes patches overlap (Shao & Cui 2022, 1st place of GUIE). Each call
    resamples the present embedding, so two calls do not give what the last one alone would give. Raises UserError for
    backbones whose size is fixed.
    """
    backbone = getattr(backbone, "trunk", backbone)  # open_clip's TimmModel
    # An open_clip tower: a class token, then the grid.
    if hasattr(backbone, "conv1") and hasattr(backbone, "positional_embedding"):
        patch_px = backbone.conv1.kernel_size[0]
        old, new = backbone.grid_size, grid(size_px, patch_px, patch_stride)
        embedding_1TD = backbone.positional_embedding[None]
        if tuple(old) != new:
            backbone.positional_embedding = resampled(embedding_1TD, old, new, num_prefix_tokens=1, squeeze=True)
        backbone.conv1.stride = (patch_stride or patch_px,) * 2
        backbone.image_size, backbone.grid_size = (size_px, size_px), new
    # A timm ViT.
    elif hasattr(backbone, "patch_embed") and hasattr(backbone, "pos_embed"):
        patch = backbone.patch_embed
        # Rotary embeddings and stems of several layers are built for one size.
        if not hasattr(patch, "proj") or not hasattr(patch, "grid_size") or getattr(backbone, "rope", None) is not None:
            raise_unsupported(backbone)
        patch_px = patch.proj.kernel_size[0]
        old, new = patch.grid_size, grid(size_px, patch_px, patch_stride)
        if backbone.pos_embed is not None and tuple(old) != new:
            # With `no_embed_class` the embedding covers the patches alone.
            prefix = 0 if getattr(backbone, "no_embed_class", False) else getattr(backbone, "num_prefix_tokens", 0)
            backbone.pos_embed = resampled(backbone.pos_embed, old, new, num_prefix_tokens=prefix)
        patch.proj.stride = (patch_stride or patch_px,) * 2
        patch.img_size, patch.grid_size, patch.num_patches = (size_px, size_px), new, new[0] * new[1]
    elif patch_stride is not None:
        raise UserError(f"image.patch_stride = {patch_stride}: {type(backbone).__name__} has no patches to overlap")
    # timm networks that resize themselves, such as Swin.
    elif hasattr(backbone, "set_input_size"):
        backbone.set_input_size(img_size=(size_px, size_px))


def grid(size_px: int, patch_px: int, patch_stride: int | None) -> tuple[int, int]:
    """Returns the number of patches per column and per row."""
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
    """Returns a position embedding for another grid; `squeeze`: without its batch dimension."""
    with torch.no_grad():
        resampled_1TD = resample_abs_pos_embed(
            embedding_1TD.detach(), new_size=list(new), old_size=list(old), num_prefix_tokens=num_prefix_tokens
        )
    return nn.Parameter(resampled_1TD[0].clone() if squeeze else resampled_1TD.clone())


def raise_unsupported(backbone: nn.Module) -> None:
    """Raises the UserError for a backbone whose input size is fixed."""
    raise UserError(f"image.size_px: {type(backbone).__name__} accepts one input size: set the default one")
