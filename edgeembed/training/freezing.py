"""Which parts of a network a training stage updates."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeembed.errors import UserError
from edgeembed.network.blocks import blocks_by_depth


def freeze_parts(parts: Sequence[tuple[nn.Module, bool]]) -> None:
    """For each (part, frozen): freezes it, in evaluation mode, or makes it trainable, in training mode."""
    for part, frozen in parts:
        part.requires_grad_(not frozen).train(not frozen)


def freeze_blocks(backbone: nn.Module, num_blocks: int) -> None:
    """Freezes the first `num_blocks` blocks and puts them into evaluation mode; the stem counts as the first block.

    Raises UserError where the backbone has fewer blocks.
    """
    blocks = blocks_by_depth(backbone)
    if num_blocks > len(blocks):
        raise UserError(f"backbone.frozen_blocks = {num_blocks}: the backbone has {len(blocks)} blocks")
    for parameters in blocks[:num_blocks]:
        for parameter in parameters:
            parameter.requires_grad_(False)
    for module in backbone.modules():
        parameters_of_module = list(module.parameters())
        if parameters_of_module and not any(parameter.requires_grad for parameter in parameters_of_module):
            module.eval()  # batch norm keeps its statistics, and nothing is dropped


def freeze_batch_norm(backbone: nn.Module) -> None:
    """Puts batch norm into evaluation mode: it keeps its statistics, while its scale and offset are still trained."""
    for module in backbone.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
