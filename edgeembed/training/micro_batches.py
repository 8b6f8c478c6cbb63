"""Splits batches into micro-batches; with batch norm, which needs a variance, into none of a single image."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeembed.data.manifest import Rows
from edgeembed.network.eval_mode import eval_mode

log = logging.getLogger(__name__)


def micro_batches(model: nn.Module, num_images: int, accumulate_steps: int) -> Iterator[Rows]:
    """Splits a batch of `num_images` into at most `accumulate_steps` micro-batches; yields the positions of each (n,).

    The loop body runs the forward and backward pass of a micro-batch. A network with batch norm gets fewer, larger
    micro-batches where some would hold a single image. Where the whole batch is a single image, batch norm layers are
    in evaluation mode during the loop body: they normalise with their running statistics.
    """
    layers = batch_norms(model)
    if layers:
        # At least two images each: a single one has no variance over the batch.
        accumulate_steps = min(accumulate_steps, max(1, num_images // 2))
    with eval_mode(nn.ModuleList(layers if num_images == 1 else [])):
        for micro_M in np.array_split(np.arange(num_images), accumulate_steps):
            # `array_split` gives empty parts where there are fewer images than parts.
            if micro_M.size:
                yield micro_M


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norm layers that take their statistics from the batch; frozen ones use their running statistics."""
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]


def warn_if_batches_of_one(model: nn.Module, batch_size: int) -> None:
    """Warns before training where every batch is a single image, so that batch norm learns no statistics."""
    if batch_size == 1 and batch_norms(model):
        log.warning(
            "batches of one image: batch norm keeps the statistics of the starting weights: set train.batch_size to 2 "
            "or more"
        )
