"""Estimates how long a run of a large network takes on a CPU, before its first batch, which alone can take an hour."""

from __future__ import annotations

import logging
import time

import torch
from torch import nn

from edgeembed.network.eval_mode import eval_mode
from edgeembed.network.model import num_params
from edgeembed.progress import duration, stage
from edgeembed.training.precision import autocast

log = logging.getLogger(__name__)

LARGE_MODEL_PARAMS = 50_000_000  # MobileNetV4-small has 2.6 million, ViT-B/16 86 million
TOO_LONG_SECONDS = 8 * 3600.0  # a working day
MEASURED_STEPS, MEASURED_IMAGES = 2, 2


def warn_if_too_slow(
    model: nn.Module,
    *,
    name: str,
    size_px: int,
    num_images: int,
    device: str,
    precision: str,
    instead: str,
    backward: bool = True,
) -> None:
    """Measures a large network on a CPU, and warns where `num_images` images would take more than a working day.

    `backward`: whether the run trains the network; else it computes embeddings with it. `instead`: what the warning
    recommends. The run is not refused: its user may want a few steps only.
    """
    if device != "cpu" or num_params(model) < LARGE_MODEL_PARAMS:
        return
    with stage(f"measuring {MEASURED_STEPS} steps of {MEASURED_IMAGES} images"):
        seconds = seconds_per_image(model, size_px=size_px, precision=precision, backward=backward) * num_images
    if seconds > TOO_LONG_SECONDS:
        log.warning(
            "%s without a GPU: about %s for %d images, from %d measured steps; instead, %s",
            *(name, duration(seconds), num_images, MEASURED_STEPS, instead),
        )


def seconds_per_image(model: nn.Module, *, size_px: int, precision: str, backward: bool = True) -> float:
    """Seconds of a forward and, where `backward`, a backward pass on the CPU, of the faster of two steps.

    Weights, statistics, modes and random numbers stay as they are.
    """
    image_BCHW = torch.zeros(MEASURED_IMAGES, 3, size_px, size_px).contiguous(memory_format=torch.channels_last)
    samples_s = []
    with eval_mode(model):  # no dropout, no change of batch norm's statistics
        model.training = backward  # a network in evaluation may average over several passes of an image
        for _ in range(MEASURED_STEPS):
            started = time.perf_counter()
            with torch.set_grad_enabled(backward), autocast("cpu", precision, cache_enabled=False):
                embedding_BD = model(image_BCHW)
            if embedding_BD.requires_grad:  # not where the whole network is frozen
                embedding_BD.float().sum().backward()
            samples_s.append(time.perf_counter() - started)
            model.zero_grad(set_to_none=True)
    # The first step includes allocations.
    return min(samples_s) / MEASURED_IMAGES
