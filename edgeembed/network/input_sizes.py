"""Which input sizes a network takes, found on torch's meta device: shapes alone, no weights, no arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from edgeembed.errors import UserError

USUAL_STEP_PX = 32  # most networks halve their map five times
LARGEST_STEP_PX = 128
TRIES_BELOW, TRIES_ABOVE = 3, 6


def require_size(name: str, size_px: int, *, native_px: int, make: Callable[[int], nn.Module]) -> None:
    """Raises UserError, with sizes near it that a network takes, where it does not take squares of `size_px`.

    `make` builds the network for a size. Nothing is said where it cannot be run on the meta device at its own size
    either.
    """
    if takes(make, size_px) or not takes(make, native_px):
        return
    step = step_px(make, native_px)
    below = range(size_px - 1 - (size_px - 1) % step, 0, -step)[:TRIES_BELOW]
    above = range(size_px - size_px % step + step, 2 * max(size_px, native_px), step)[:TRIES_ABOVE]
    near = {first_taken(make, below), first_taken(make, above), native_px} - {None}
    sizes = " or ".join(str(size) for size in sorted(size for size in near if size))
    raise UserError(f"image.size_px = {size_px}: {name} does not take images of this size: give {sizes}")


def takes(make: Callable[[int], nn.Module], size_px: int) -> bool:
    try:
        with torch.device("meta"), torch.no_grad():
            make(size_px).eval()(torch.zeros(1, 3, size_px, size_px))
    except Exception:  # whatever a network raises where shapes do not fit
        return False
    return True


def first_taken(make: Callable[[int], nn.Module], sizes: Iterable[int]) -> int | None:
    return next((size_px for size_px in sizes if takes(make, size_px)), None)


def step_px(make: Callable[[int], nn.Module], native_px: int) -> int:
    """What sizes are multiples of: the sides of all patches, where a network cuts its images into patches."""
    with torch.device("meta"):
        modules = list(make(native_px).modules())
    sides = [getattr(module, "patch_size", None) for module in modules]
    pixels = [side[0] if isinstance(side, tuple) else side for side in sides]
    step = math.lcm(*[side for side in pixels if isinstance(side, int) and side > 1])
    return step if 1 < step <= LARGEST_STEP_PX else USUAL_STEP_PX
