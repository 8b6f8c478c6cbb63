"""Where a run computes, and how its numerics are made repeatable."""

from __future__ import annotations

import ctypes
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeembed.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # glibc's malloc.h
SMALL_MODEL_BYTES = 400_000_000
LARGE_BLOCK_BYTES = 16 * 2**20


def pick_device(wanted: str) -> str:
    """ "auto" becomes cuda where there is an NVIDIA GPU, else mps where there is an Apple one, else cpu."""
    offered = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(device for device, is_there in offered.items() if is_there)
    if wanted not in offered:
        raise UserError(f"train.device = {wanted!r}: expected auto, {', '.join(offered)}")
    if not offered[wanted]:
        raise UserError(
            f"train.device = {wanted!r}: this machine or this torch build has no {wanted} device: use cpu or auto"
        )
    return wanted


def set_allocator(model_bytes: int) -> None:
    """Tells glibc's malloc what to do with freed memory; nothing on other systems.

    A small model keeps all of it: fewer page faults, up to a fifth more speed. A large one returns blocks of 16 MiB and
    more: by default malloc keeps them in a heap that fragments, which cost ViT-H-14 half a GiB of peak and no time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    if model_bytes <= SMALL_MODEL_BYTES:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    else:
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


class PreciseConv2d(nn.Conv2d):
    """A convolution in float32, whatever autocast says."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


class PointwiseConv2d(nn.Conv2d):
    """A convolution of size 1 that is a matrix product where its input is one pixel, and never has a stride.

    Pixels that a stride would skip are left out first, which is the same: the kernel of torch 2.15 for a stride, few
    input channels and channels_last writes beyond its memory in the backward pass (seen on an AMD EPYC, FastViT-T8).
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[2:] != (1, 1):
            rows, columns = (int(step) for step in self.stride)
            return F.conv2d(input[:, :, ::rows, ::columns], self.weight, self.bias)
        return F.linear(input.flatten(1), self.weight.flatten(1), self.bias)[..., None, None]


def suit_convolutions(model: nn.Module, device: str) -> None:
    """On a CPU, keeps the convolutions of a network from the kernels that are slow or broken there.

    Depthwise ones stay in float32 where the rest is trained in bf16: their backward pass has no fast bf16 kernel. A
    step of MobileNetV4-small takes half the time that it takes in bf16 throughout, and four fifths of that in float32
    throughout. Pointwise ones after pooling become matrix products: a tenth less of that step (Intel Xeon with AMX, one
    core).
    """
    if device != "cpu":
        return
    for module in model.modules():
        if type(module) is not nn.Conv2d:
            continue
        if module.groups == module.in_channels > 1:
            module.__class__ = PreciseConv2d
        elif (module.kernel_size, module.padding, module.groups) == ((1, 1), (0, 0), 1):
            module.__class__ = PointwiseConv2d


def seed_step(seed: int, step: int) -> None:
    """Seeds dropout from the step alone, so that a resumed run draws what the uninterrupted one drew."""
    torch.manual_seed(seed * 1_000_003 + step)
