"""Estimates how long a large network takes on a CPU, before its first batch, which alone can take an hour."""

from __future__ import annotations

import logging
import time

import torch
from torch import nn

from edgeembed.network.model import num_params
from edgeembed.progress import duration, stage
from edgeembed.training.precision import autocast

log = logging.getLogger(__name__)

LARGE_MODEL_PARAMS = 50_000_000
HOPELESS_SECONDS = 8 * 3600.0  # a working day
MEASURED_STEPS, MEASURED_IMAGES = 2, 2


def warn_if_hopeless(
    model: nn.Module,
    *,
    name: str,
    size_px: int,
    num_images: int,
    device: str,
    precision: str,
    instead: str,
    learns: bool = True,
) -> None:
    """Measures a large network on a CPU; warns where `num_images` images would take over a working day, with `instead`.

    `learns`: forward and backward, else forward alone, as of a teacher whose embeddings are targets. The run goes on: a
    few steps of it may be all that is wanted.
    """
    if device != "cpu" or num_params(model) < LARGE_MODEL_PARAMS:
        return
    with stage(f"measuring {MEASURED_STEPS} steps of {MEASURED_IMAGES} images"):
        seconds = seconds_an_image(model, size_px=size_px, precision=precision, learns=learns) * num_images
    if seconds > HOPELESS_SECONDS:
        log.warning(
            "%s without a GPU: about %s for %d images, from %d measured steps; instead, %s",
            *(name, duration(seconds), num_images, MEASURED_STEPS, instead),
        )


def seconds_an_image(model: nn.Module, *, size_px: int, precision: str, learns: bool = True) -> float:
    """Forward and, where it `learns`, backward on the CPU, the faster of two steps; the network stays as it is."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # no dropout, no change of batch norm's statistics
    model.training = learns  # one pass an image, as in training; a finished teacher may average over several
    image_BCHW = torch.zeros(MEASURED_IMAGES, 3, size_px, size_px).contiguous(memory_format=torch.channels_last)
    samples_s = []
    for _ in range(MEASURED_STEPS):
        started = time.perf_counter()
        with torch.set_grad_enabled(learns), autocast("cpu", precision, cache_enabled=False):
            embedding_BD = model(image_BCHW)
        if embedding_BD.requires_grad:  # not where all of it is frozen
            embedding_BD.float().sum().backward()
        samples_s.append(time.perf_counter() - started)
        model.zero_grad(set_to_none=True)
    for module, mode in modes:
        module.training = mode
    return min(samples_s) / MEASURED_IMAGES
