"""Groups parameters: by block, for freezing and layer-wise learning rates, and those without weight decay."""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters
from torch import nn

from edgeembed.errors import UserError

# In the form of timm's `group_matcher`; 99999 sorts the final norm after all blocks.
OPEN_CLIP_VIT = {
    "stem": r"^conv1|class_embedding|positional_embedding|ln_pre",
    "blocks": [(r"^transformer\.resblocks\.(\d+)", None), (r"^ln_post", (99999,))],
}


def blocks_by_depth(backbone: Any) -> list[list[nn.Parameter]]:
    """Returns the parameters of each block, the stem first; parameters of no block are counted with the last one."""
    named = dict(backbone.named_parameters())
    if hasattr(backbone, "group_matcher"):
        block_of: dict[str, int] = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    elif hasattr(backbone, "transformer"):
        block_of = group_parameters(backbone, OPEN_CLIP_VIT, reverse=True)
    else:  # a wrapped timm model: open_clip's TimmModel, or GeMBackbone
        inner: Any = next((child for child in backbone.children() if hasattr(child, "group_matcher")), None)
        if inner is None:
            raise UserError(f"{type(backbone).__name__} does not define its blocks: leave optim.layer_decay at 1")
        # Parameters of the wrapper itself, such as GeM's power, count with the last block.
        last = len(blocks := blocks_by_depth(inner)) - 1
        number = {id(parameter): block for block, parameters in enumerate(blocks) for parameter in parameters}
        block_of = {name: number.get(id(parameter), last) for name, parameter in named.items()}
    blocks = [[] for _ in range(max(block_of.values()) + 1)]
    for name, parameter in named.items():
        blocks[block_of[name]].append(parameter)
    return blocks


TOKENS_AND_POSITIONS = ("class_embedding", "cls_token", "positional_embedding", "pos_embed")


def no_weight_decay_ids(network: nn.Module) -> set[int]:
    """Returns the `id` of each parameter that neither weight decay nor Muon is applied to.

    These are norms, biases and other vectors, class token, position embedding, the patch stem, and what a timm model
    lists in `no_weight_decay` (such as tables of relative positions). Weight decay pulls a parameter towards zero, and
    Muon makes its update orthogonal: neither suits an offset, a token or a position. The patch stem is exempt as in the
    published recipes.
    """
    exempt: set[int] = set()
    for prefix, module in network.named_modules():
        declared = module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()
        exempt |= {id(parameter) for name, parameter in module.named_parameters() if name in declared}
        is_stem = "patch_embed" in prefix.split(".") or is_patch_stem(module)
        for name, parameter in module.named_parameters(recurse=False):
            # All elements along one axis: a bias, a norm's scale, a layer scale (1, C, 1, 1).
            is_vector = max(parameter.shape, default=1) == parameter.numel()
            if is_stem or is_vector or name in TOKENS_AND_POSITIONS or name == "bias":
                exempt.add(id(parameter))
    return exempt


def is_patch_stem(module: nn.Module) -> bool:
    """Whether a module cuts an image into patches: a convolution of RGB with equal kernel and stride, above 1."""
    if not isinstance(module, nn.Conv2d) or module.in_channels != 3:
        return False
    return module.kernel_size[0] > 1 and tuple(module.kernel_size) == tuple(module.stride)
