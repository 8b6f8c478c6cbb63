"""The device of a run, and what makes training fast and repeatable on it."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeembed.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # glibc's malloc.h
SMALL_MODEL_BYTES = 400_000_000  # of weights; those of ViT-B/16 have 345 MB, of ViT-H-14 2.5 GB
LARGE_BLOCK_BYTES = 16 * 2**20


def pick_device(requested: str) -> str:
    """The device for `train.device`: "auto" is cuda with an NVIDIA GPU, mps with an Apple GPU, else cpu.

    Raises UserError for a device that this machine or this build of torch does not have.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if requested == "auto":
        return next(device for device, is_available in available.items() if is_available)
    if requested not in available:
        raise UserError(f"train.device = {requested!r}: expected auto, {', '.join(available)}")
    if not available[requested]:
        raise UserError(
            f"train.device = {requested!r}: this machine or this torch build has no {requested} device: use cpu or auto"
        )
    return requested


def set_allocator(model_bytes: int) -> None:
    """Tells glibc's malloc whether to give freed memory back to the system; does nothing on other systems.

    For a small model malloc keeps all of it: fewer page faults, up to a fifth more speed. For a large one it gives
    blocks of 16 MiB and more back: by default it keeps them in a heap that fragments, which cost ViT-H-14 half a GiB of
    peak memory and saved no time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    if model_bytes <= SMALL_MODEL_BYTES:
        # No block comes from mmap, and the heap is never trimmed: all memory is used again.
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    else:
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


class Float32Forward(nn.Module):
    """The forward pass of a convolution in float32 within autocast, too: the first base class, before the layer's own.

    Convolutions of every class keep their own padding (timm's `Conv2dSame` pads as TensorFlow does).
    """

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            output: Tensor = super().forward(input.float())
            return output


@functools.cache
def float32_class(layer: type[Any]) -> type[nn.Conv2d]:
    """Returns the subclass of a convolution's class that computes in float32."""
    return type(f"Float32{layer.__name__}", (Float32Forward, layer), {})


class PointwiseConv2d(nn.Conv2d):
    """A 1 x 1 convolution that computes a matrix product where its input is one pixel, and never passes a stride on.

    The pixels that a stride skips are left out of the input instead, with the same result: torch 2.15's kernel for a
    stride, few input channels and channels_last writes beyond its memory in the backward pass (seen on an AMD EPYC with
    FastViT-T8).
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[2:] != (1, 1):
            rows, columns = (int(step) for step in self.stride)
            return F.conv2d(input[:, :, ::rows, ::columns], self.weight, self.bias)
        return F.linear(input.flatten(1), self.weight.flatten(1), self.bias)[..., None, None]


def replace_slow_convolutions(model: nn.Module, device: str) -> None:
    """Replaces, on a CPU, the convolutions of a network whose torch kernels are slow or wrong there.

    Depthwise ones compute in float32 where the rest is trained in bf16: their backward pass has no fast bf16 kernel. A
    step of MobileNetV4-small then takes half the time of one in bf16 throughout, and four fifths of the time of one in
    float32 throughout; one of EfficientNet-Lite0 56 % and 81 %. Pointwise ones after pooling become matrix products,
    which takes a tenth off MobileNetV4's step (measured on one core of an Intel Xeon with AMX, Lite0's on two cores of
    an AMD EPYC).
    """
    if device != "cpu":
        return
    for module in model.modules():
        if not isinstance(module, nn.Conv2d) or isinstance(module, Float32Forward):
            continue
        # The class alone is exchanged: parameters, their names and optimisers stay valid.
        if module.groups == module.in_channels > 1:
            module.__class__ = float32_class(type(module))  # type: ignore[arg-type]
        # Subclasses have a forward pass of their own.
        elif type(module) is nn.Conv2d and (module.kernel_size, module.padding, module.groups) == ((1, 1), (0, 0), 1):
            module.__class__ = PointwiseConv2d


def seed_step(seed: int, step: int) -> None:
    """Seeds dropout from the step alone, so that a resumed run draws what the uninterrupted one drew."""
    # Below a million steps, runs with different seeds share no number.
    torch.manual_seed(seed * 1_000_003 + step)
