"""The number format that a run computes in: the fastest one that its device computes natively, unless told otherwise.

bf16 on a CPU without units for it is emulated, and a step takes 5 to 40 times as long as in fp32. Flags of the CPU tell
whether it has the units, but not whether the installed libraries use them, so a short measurement has the last word.
"""

from __future__ import annotations

import functools
import logging
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml

from edgeembed.run import machine

log = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CPU_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # x86, x86, ARM
BF16_CAPABILITY = (8, 0)  # NVIDIA GPUs from Ampere on compute bf16 natively
MEASURED_ROUNDS = 3
LEAST_LOSS_SCALE = 2.0**-10


def choose_precision(
    wanted: str, device: str, *, key: str, kept: str | None = None, because: str = "as the run began"
) -> str:
    """ "bf16", "fp16" or "fp32" for a recipe's value of `key`, which may be "auto"; logs the choice and its reason.

    `kept` is what was chosen before, say when a run began that is now resumed: a run computes in one format to its end,
    on whatever machine. A format that this device emulates is used where it was asked for, with a warning.
    """
    if wanted == "auto" and kept is not None:
        precision, reason = kept, because
    elif wanted == "auto":
        precision, reason = native_precision(device)
    else:
        precision, reason = wanted, "as the recipe says"
    if wanted != "auto" or kept is not None:
        warn_if_emulated(precision, device, key=key)
    log.info("%s: %s on %s (%s)", key, precision, device, reason)
    return precision


def native_precision(device: str) -> tuple[str, str]:
    """The fastest format that a device computes natively, and why it is that one."""
    if device == "cuda":
        capability = torch.cuda.get_device_capability()
        said = "compute capability {}.{}".format(*capability)
        return ("bf16", said) if capability >= BF16_CAPABILITY else ("fp16", f"{said} has no bf16; the loss is scaled")
    if device != "cpu":
        return "fp32", "the only format that is tested there"
    if CPU_BF16_FLAGS.isdisjoint(machine()["cpu_flags"]):
        return "fp32", "this CPU has no bf16 units"
    factor = time_in_fp32(device, "bf16")
    if factor > 1.0:
        return "fp32", f"this CPU has bf16 units, but a training step took {factor:.1f} times as long in bf16"
    return "bf16", f"native here: a training step took {factor:.2f} of the time in fp32"


def warn_if_emulated(precision: str, device: str, *, key: str) -> None:
    """Warns where a format makes a step slower than fp32 would, as formats do that a device emulates."""
    if precision == "fp32" or device not in ("cpu", "cuda"):
        return
    factor = time_in_fp32(device, precision)
    if factor > 1.0:
        log.warning(
            "%s = %s: emulated on this %s, a step took %.1f times as long as in fp32: set %s=auto",
            *(key, precision, device, factor, key),
        )


@functools.cache
def time_in_fp32(device: str, precision: str) -> float:
    """How long a small training step takes in a format, as a multiple of its time in fp32.

    The step is a convolution and a matrix product, forward and backward. Least of a few rounds that take turns: a
    quarter of a second, once a process.
    """
    image_BCHW = torch.ones(8, 32, 28, 28, device=device).contiguous(memory_format=torch.channels_last)
    kernel = torch.full((64, 32, 3, 3), 0.01, device=device, requires_grad=True)
    matrix = torch.full((64, 64), 0.01, device=device, requires_grad=True)

    def step_s(name: str) -> float:
        kernel.grad = matrix.grad = None
        started = time.perf_counter()
        with autocast(device, name):
            map_BCHW = F.conv2d(image_BCHW, kernel, padding=1)
            loss = (map_BCHW.flatten(2).mT @ matrix).float().sum()
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    seconds: dict[str, list[float]] = {precision: [], "fp32": []}
    for _ in range(MEASURED_ROUNDS + 1):  # the first warms up
        for name, samples in seconds.items():
            samples.append(step_s(name))
    return min(seconds[precision][1:]) / min(seconds["fp32"][1:])


def autocast(device: str, precision: str, *, cache_enabled: bool = True) -> torch.autocast:
    """A context in which convolutions and matrix products compute in a format."""
    wanted = precision != "fp32"
    return torch.autocast(device, DTYPES[precision] if wanted else None, enabled=wanted, cache_enabled=cache_enabled)


def loss_scaler(device: str, precision: str) -> torch.amp.GradScaler:
    """Scales the loss in fp16, whose small gradients would be zero; does nothing in other formats."""
    return torch.amp.GradScaler(device, enabled=precision == "fp16")


def resumed_value(config: Path, section: str, key: str) -> Any:
    """A value of the resolved recipe that a run folder keeps; None where there is no run."""
    if not config.is_file():
        return None
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    return (values.get(section) or {}).get(key) if isinstance(values, dict) else None
