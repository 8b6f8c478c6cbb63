"""Evaluation mode for a while, without losing what a training stage has frozen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Within the block all modules of `model` are in evaluation mode; afterwards each is in the mode that it had.

    `model.train()` would not restore it: that also puts the batch norms into training mode that a stage has frozen.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
