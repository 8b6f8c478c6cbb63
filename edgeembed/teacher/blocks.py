"""The blocks of a tower from its stem to its last one, for frozen prefixes and rates that fall towards the input."""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters
from torch import nn

from edgeembed.errors import UserError

OPEN_CLIP_VIT = {
    "stem": r"^conv1|class_embedding|positional_embedding|ln_pre",
    "blocks": [(r"^transformer\.resblocks\.(\d+)", None), (r"^ln_post", (99999,))],
}


def blocks_of(backbone: Any) -> list[list[nn.Parameter]]:
    """Parameters of each block, the stem first; what belongs to none is counted with the last."""
    named = dict(backbone.named_parameters())
    if hasattr(backbone, "group_matcher"):
        block_of: dict[str, int] = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    elif hasattr(backbone, "transformer"):
        block_of = group_parameters(backbone, OPEN_CLIP_VIT, reverse=True)
    else:  # a timm model inside: open_clip's TimmModel, or ours with another pooling
        inner: Any = next((child for child in backbone.children() if hasattr(child, "group_matcher")), None)
        if inner is None:
            raise UserError(f"{type(backbone).__name__} does not say what its blocks are: leave optim.layer_decay at 1")
        last = len(blocks := blocks_of(inner)) - 1
        number = {id(parameter): block for block, parameters in enumerate(blocks) for parameter in parameters}
        block_of = {name: number.get(id(parameter), last) for name, parameter in named.items()}
    blocks = [[] for _ in range(max(block_of.values()) + 1)]
    for name, parameter in named.items():
        blocks[block_of[name]].append(parameter)
    return blocks


def freeze_blocks(backbone: nn.Module, num_blocks: int) -> None:
    """Stops the first blocks from learning; the stem is the first."""
    blocks = blocks_of(backbone)
    if num_blocks > len(blocks):
        raise UserError(f"backbone.frozen_blocks = {num_blocks}: the backbone has {len(blocks)} blocks")
    for parameters in blocks[:num_blocks]:
        for parameter in parameters:
            parameter.requires_grad_(False)
