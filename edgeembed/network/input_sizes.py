"""Which input sizes a network accepts, tested on torch's meta device, which computes shapes but no values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from edgeembed.errors import UserError

USUAL_STEP_PX = 32  # most networks halve their feature map five times
MAX_STEP_PX = 128
NUM_TRIES_BELOW, NUM_TRIES_ABOVE = 3, 6


def require_accepted_size(name: str, size_px: int, *, default_px: int, build: Callable[[int], nn.Module]) -> None:
    """Raises UserError, with the nearest sizes that a network accepts, if it does not accept squares of `size_px`.

    `build` builds the network for a size. A network that fails at its default size too cannot be tested on the meta
    device: no error is raised.
    """
    if accepts_size(build, size_px) or not accepts_size(build, default_px):
        return
    step = size_step_px(build, default_px)
    # Multiples of the step around the requested size. Each try builds the network, so there are few.
    below = range(size_px - 1 - (size_px - 1) % step, 0, -step)[:NUM_TRIES_BELOW]
    above = range(size_px - size_px % step + step, 2 * max(size_px, default_px), step)[:NUM_TRIES_ABOVE]
    nearest = {first_accepted_size(build, below), first_accepted_size(build, above), default_px} - {None}
    sizes = " or ".join(str(size) for size in sorted(size for size in nearest if size))
    raise UserError(f"image.size_px = {size_px}: {name} does not take images of this size: give {sizes}")


def accepts_size(build: Callable[[int], nn.Module], size_px: int) -> bool:
    """Whether a network can be built for squares of `size_px`, and run on one."""
    try:
        with torch.device("meta"), torch.no_grad():
            build(size_px).eval()(torch.zeros(1, 3, size_px, size_px))
    except Exception:  # networks raise all kinds of errors where shapes do not fit
        return False
    return True


def first_accepted_size(build: Callable[[int], nn.Module], sizes: Iterable[int]) -> int | None:
    """Returns the first of some sizes that a network accepts, None if it accepts none of them."""
    return next((size_px for size_px in sizes if accepts_size(build, size_px)), None)


def size_step_px(build: Callable[[int], nn.Module], default_px: int) -> int:
    """Returns what accepted sizes are probably multiples of: the patch size, or 32 for networks without patches."""
    with torch.device("meta"):
        modules = list(build(default_px).modules())
    sides = [getattr(module, "patch_size", None) for module in modules]
    pixels = [side[0] if isinstance(side, tuple) else side for side in sides]
    # Networks with several patch sizes, such as CrossViT, need a multiple of all of them.
    step = math.lcm(*[side for side in pixels if isinstance(side, int) and side > 1])
    return step if 1 < step <= MAX_STEP_PX else USUAL_STEP_PX
