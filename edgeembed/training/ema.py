"""An exponential moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, *, decay: float) -> None:
    """Moves a copy's weights and statistics towards the model's: average <- decay * average + (1 - decay) * model."""
    held, new = list(average.state_dict().values()), list(model.state_dict().values())
    floats = [pair for pair in zip(held, new, strict=True) if pair[0].is_floating_point()]
    torch._foreach_lerp_([pair[0] for pair in floats], [pair[1] for pair in floats], 1.0 - decay)
    for old, value in zip(held, new, strict=True):
        if not old.is_floating_point():
            old.copy_(value)
