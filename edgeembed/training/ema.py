"""An exponential moving average (EMA) of a network's weights."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, *, decay: float) -> None:
    """Moves a copy's weights and statistics towards the model's: average <- decay * average + (1 - decay) * model.

    What is not a floating-point number, such as a count of batches, is copied.
    """
    pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([averaged for averaged, _ in floats], [value for _, value in floats], 1.0 - decay)
    for averaged, value in pairs:
        if not averaged.is_floating_point():
            averaged.copy_(value)


def warmed_up_decay(decay: float, step: int) -> float:
    """The decay of an average at a step: smaller in the first steps, so that the average forgets its start quickly."""
    # As TensorFlow's ExponentialMovingAverage with `num_updates`.
    return min(decay, (1 + step) / (10 + step))
