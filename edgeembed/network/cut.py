"""Cuts a network after its first blocks: what is left of a pretrained network is a small pretrained one."""

from __future__ import annotations

import open_clip
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from edgeembed.errors import UserError

CONVOLUTIONAL = (EfficientNet, MobileNetV3)
"""Networks of timm whose blocks are in groups, with one convolution behind the last."""


def keep_first_blocks(network: nn.Module, num_blocks: int, *, name: str, key: str) -> None:
    """Removes, in place, all but the first `num_blocks` of a network's blocks; pooling and a final norm stay.

    EfficientNet, MobileNetV3 and what timm builds of their parts (MobileNetV4, LCNet, TinyNet, ...) are counted in
    groups of blocks; the convolution behind the last group, which is made for its channels, goes too. Vision
    transformers are counted in blocks. Raises UserError, which names `name` and the recipe key `key`, for any other
    network and for more blocks than there are.
    """
    if isinstance(network, open_clip.transformer.VisionTransformer):
        holder, attribute = network.transformer, "resblocks"
    elif isinstance(network, (*CONVOLUTIONAL, VisionTransformer)):
        holder, attribute = network, "blocks"
    else:
        raise UserError(
            f"{key} = {num_blocks}: {name} cannot be cut, which only vision transformers and networks of the "
            f"EfficientNet and MobileNetV3 families can: set {key} to null"
        )
    blocks = getattr(holder, attribute)
    if not 1 <= num_blocks <= len(blocks):
        kind = "groups of blocks" if isinstance(network, CONVOLUTIONAL) else "blocks"
        raise UserError(f"{key} = {num_blocks}: {name} has {len(blocks)} {kind}: give 1 to {len(blocks)}")
    if num_blocks == len(blocks):
        return
    setattr(holder, attribute, blocks[:num_blocks])
    remove_head_convolution(network)


def remove_head_convolution(network: nn.Module) -> None:
    """Removes, in place, the convolution behind the last group of blocks, where there is one."""
    if isinstance(network, EfficientNet):
        network.conv_head = network.bn2 = nn.Identity()
    elif isinstance(network, MobileNetV3):
        network.conv_head = network.norm_head = network.act2 = nn.Identity()
