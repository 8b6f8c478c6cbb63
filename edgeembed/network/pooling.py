"""Pooling that can replace a backbone's default pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgeembed.errors import UserError


class GeMBackbone(nn.Module):
    """A convolutional timm model with generalised-mean pooling (Radenovic et al. 2018): mean(x^p)^(1/p).

    `power`, p, is learnt and starts at 3. Features are clamped to at least 1e-6 and pooled in float32.
    """

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        head: Any = getattr(features, "head", None)
        # `forward` does not run the head, so that one with parameters cannot be left out.
        pools_in_head = hasattr(head, "global_pool") and not list(head.parameters())
        if not hasattr(features, "forward_features") or not (hasattr(features, "global_pool") or pools_in_head):
            raise UserError(f"backbone.pooling = 'gem': {type(features).__name__} has no pooling to replace")
        self.features: Any = features
        (head if pools_in_head else self.features).global_pool = nn.Identity()
        self.power = nn.Parameter(torch.tensor([3.0]))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        feature_BCHW: Tensor = self.features.forward_features(image_BCHW)
        if feature_BCHW.ndim != 4:
            raise UserError(
                f"backbone.pooling = 'gem': {type(self.features).__name__} has no feature map: give a convolutional one"
            )
        with torch.autocast(feature_BCHW.device.type, enabled=False):
            return feature_BCHW.float().clamp_min(1e-6).pow(self.power).mean(dim=(2, 3)).pow(1.0 / self.power)

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.features.set_grad_checkpointing(enable)
