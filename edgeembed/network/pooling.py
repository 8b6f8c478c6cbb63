"""Pooling layers that can replace a tower's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgeembed.errors import UserError


class GeMTower(nn.Module):
    """A convolutional tower with generalised-mean pooling (Radenovic et al. 2018): the mean of x^p to the 1/p.

    `p` is learnt and starts at 3; values are taken at 1e-6 at least, in float32.
    """

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        head: Any = getattr(features, "head", None)
        pools_in_head = hasattr(head, "global_pool") and not list(head.parameters())
        if not hasattr(features, "forward_features") or not (hasattr(features, "global_pool") or pools_in_head):
            raise UserError(f"backbone.pooling = 'gem': {type(features).__name__} has no pooling to replace")
        self.features: Any = features
        (head if pools_in_head else self.features).global_pool = nn.Identity()
        self.power = nn.Parameter(torch.tensor([3.0]))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        feature_BCHW: Tensor = self.features.forward_features(image_BCHW)
        if feature_BCHW.ndim != 4:
            raise UserError("backbone.pooling = 'gem': the tower gives no feature map: choose a convolutional one")
        with torch.autocast(feature_BCHW.device.type, enabled=False):
            return feature_BCHW.float().clamp_min(1e-6).pow(self.power).mean(dim=(2, 3)).pow(1.0 / self.power)

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.features.set_grad_checkpointing(enable)
