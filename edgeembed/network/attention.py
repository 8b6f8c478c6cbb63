"""Adds transformer blocks behind the convolutions of a network: a hybrid, whose convolutions are pretrained."""

from __future__ import annotations

from timm.layers.norm import LayerNorm2d
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from edgeembed.errors import UserError
from edgeembed.network.cut import CONVOLUTIONAL

WIDTH, HEADS = 192, 3
"""Channels and attention heads of the added blocks: those of ViT-Tiny."""
LAYER_SCALE = 0.1
"""Initial factor of what a block adds to its input, so that pretrained features reach the output at first."""


class FeatureMapBlock(nn.Module):
    """A transformer block between the positions of a feature map (B, C, H, W), whose shape it keeps; any H and W.

    Without position embeddings: convolutions with zero padding have encoded positions already.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.block = Block(channels, num_heads, qkv_bias=True, init_values=LAYER_SCALE)

    def forward(self, feature_BCHW: Tensor) -> Tensor:
        token_BNC: Tensor = self.block(feature_BCHW.flatten(2).transpose(1, 2))
        return token_BNC.transpose(1, 2).reshape(feature_BCHW.shape)


def require_attention(network: nn.Module, num_blocks: int, *, name: str, key: str) -> None:
    """Raises UserError, which names `name` and the recipe key `key`, for networks that no blocks can be added to."""
    if not isinstance(network, CONVOLUTIONAL):
        raise UserError(
            f"{key} = {num_blocks}: transformer blocks cannot be added to {name}, only to networks of the "
            f"EfficientNet and MobileNetV3 families: set {key} to null"
        )


def add_attention(network: nn.Module, num_blocks: int, *, channels: int) -> None:
    """Adds transformer blocks with random weights, in place, behind the last group of blocks, which has `channels`.

    A convolution behind that group has to be removed before.
    """
    blocks = [FeatureMapBlock(WIDTH, HEADS) for _ in range(num_blocks)]
    # One more group: freezing, layer decay and gradient checkpointing go through groups and what they hold.
    group = nn.Sequential(nn.Conv2d(channels, WIDTH, kernel_size=1), *blocks, LayerNorm2d(WIDTH))
    network.blocks.append(group)  # type: ignore[operator, union-attr]
