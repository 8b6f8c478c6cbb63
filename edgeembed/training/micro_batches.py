"""Micro-batches that batch norm can take: it needs two values of a channel to take their mean and variance."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeembed.data.manifest import Rows

log = logging.getLogger(__name__)


def micro_batches(model: nn.Module, num_images: int, accumulate_steps: int) -> Iterator[Rows]:
    """Splits a batch of `num_images` into at most `accumulate_steps` micro-batches; yields the positions of each (n,).

    The loop body runs the forward and backward pass of a micro-batch. A network with batch norm gets fewer, larger
    micro-batches where some would hold a single image. Where the whole batch is a single image, batch norm layers are
    in evaluation mode during the loop body: they normalise with their running statistics.
    """
    layers = batch_norms(model)
    if layers:
        accumulate_steps = min(accumulate_steps, max(1, num_images // 2))
    lone = layers if num_images == 1 else []
    try:
        for layer in lone:
            layer.eval()
        for places in np.array_split(np.arange(num_images), accumulate_steps):
            if places.size:
                yield places
    finally:
        for layer in lone:
            layer.train()


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Those layers that take their statistics from the batch; frozen ones do not."""
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]


def warn_if_lone_images(model: nn.Module, batch_size: int) -> None:
    """Says before training that every batch is of one image, so that batch norm learns no statistics."""
    if batch_size == 1 and batch_norms(model):
        log.warning(
            "batches of one image: batch norm keeps the statistics of the starting weights: set train.batch_size to 2 "
            "or more"
        )
