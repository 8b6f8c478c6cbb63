"""The number format that a run computes in; by default the fastest one that its device computes natively.

On a CPU without units for bf16 it is emulated, and a step takes 8 to 20 times as long as in fp32. The CPU's flags show
whether it has such units, but not whether the installed libraries use them: a short measurement decides.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml

from edgeembed.config import TrainSection
from edgeembed.errors import UserError
from edgeembed.machine import describe_machine
from edgeembed.run_folder import RunFolder

log = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CPU_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # x86, x86, ARM
BF16_CAPABILITY = (8, 0)  # NVIDIA GPUs from Ampere on compute bf16 natively
MEASURED_ROUNDS = 5
EMULATED_FACTOR = 1.25  # a native small step takes 0.55 to 0.7 of its time in fp32, emulated 6 to 8 times
MIN_LOSS_SCALE = 2.0**-10  # at a scale this small, the gradients overflow by themselves


def choose_precision(
    requested: str, device: str, *, key: str, kept: str | None = None, reason_kept: str = "as the run began"
) -> str:
    """The number format "bf16", "fp16" or "fp32" for a recipe's `key`, which may be "auto"; logs it with the reason.

    `kept` is an earlier choice that "auto" keeps, such as that of a run which is now resumed: a run computes in one
    format to its end, on whatever machine; `reason_kept` is logged with it. A format that this device emulates is used
    too, with a warning.
    """
    if requested == "auto" and kept is not None:
        precision, reason = kept, reason_kept
    elif requested == "auto":
        precision, reason = native_precision(device)
    else:
        precision, reason = requested, "as the recipe says"
    log.info("%s: %s on %s (%s)", key, precision, device, reason)
    # A format that was just chosen here is native; a requested or kept one may be emulated.
    if requested != "auto" or kept is not None:
        warn_if_emulated(
            precision,
            device,
            key=key,
            remedy=f"set {key}=auto" if requested != "auto" else f"kept {reason}; {key}=fp32 begins anew",
        )
    return precision


def resolve_train_precision(train: TrainSection, run: RunFolder, device: str, *, resume: bool) -> TrainSection:
    """The section with `precision` resolved: as a resumed run began, else as `choose_precision` decides."""
    kept = resumed_precision(run.config, "train") if resume else None
    precision = choose_precision(train.precision, device, key="train.precision", kept=kept)
    return train.model_copy(update={"precision": precision})


def native_precision(device: str) -> tuple[str, str]:
    """The fastest format that a device computes natively, and why it is that one."""
    if device == "cuda":
        capability = torch.cuda.get_device_capability()
        name = "compute capability {}.{}".format(*capability)
        return ("bf16", name) if capability >= BF16_CAPABILITY else ("fp16", f"{name} has no bf16; the loss is scaled")
    if device != "cpu":
        return "fp32", "other formats are not tried there"
    if CPU_BF16_FLAGS.isdisjoint(describe_machine().cpu_flags):
        return "fp32", "this CPU has no bf16 units"
    factor = step_time_relative_to_fp32("bf16")
    if factor > EMULATED_FACTOR:
        return "fp32", f"this CPU has bf16 units, but a training step took {factor:.1f} times as long in bf16"
    return "bf16", f"native here: a training step took {factor:.2f} of the time in fp32"


def warn_if_emulated(precision: str, device: str, *, key: str, remedy: str) -> None:
    """Warns where a device emulates a format, which makes it slower than fp32."""
    if device == "cuda" and precision == "bf16" and torch.cuda.get_device_capability() < BF16_CAPABILITY:
        log.warning("%s = bf16: this GPU emulates it: %s", key, remedy)
    if device == "cpu" and precision != "fp32" and (factor := step_time_relative_to_fp32(precision)) > EMULATED_FACTOR:
        log.warning(
            "%s = %s: emulated on this CPU, a step took %.1f times as long as in fp32: %s",
            *(key, precision, factor, remedy),
        )


@functools.cache
def step_time_relative_to_fp32(precision: str) -> float:
    """The time of a small training step on the CPU in a format, as a multiple of its time in fp32.

    The step is a convolution and a matrix product, forward and backward. The shortest of a few rounds in which the
    formats take turns; measured once per process.
    """
    image_BCHW = torch.ones(8, 32, 28, 28).contiguous(memory_format=torch.channels_last)
    kernel = torch.full((64, 32, 3, 3), 0.01, requires_grad=True)
    matrix = torch.full((64, 64), 0.01, requires_grad=True)

    def step_s(name: str) -> float:
        kernel.grad = matrix.grad = None
        started = time.perf_counter()
        with autocast("cpu", name):
            map_BCHW = F.conv2d(image_BCHW, kernel, padding=1)
            loss = (map_BCHW.flatten(2).mT @ matrix).float().sum()
        loss.backward()
        return time.perf_counter() - started

    seconds: dict[str, list[float]] = {precision: [], "fp32": []}
    for _ in range(MEASURED_ROUNDS + 1):  # the first warms up
        for name, samples in seconds.items():
            samples.append(step_s(name))
    return min(seconds[precision][1:]) / min(seconds["fp32"][1:])


def autocast(device: str, precision: str, *, cache_enabled: bool = True) -> torch.autocast:
    """A context in which convolutions and matrix products compute in a format."""
    # Disabled for fp32: on a CPU, autocast warns about float32 as its format.
    lower = precision != "fp32"
    return torch.autocast(device, DTYPES[precision] if lower else None, enabled=lower, cache_enabled=cache_enabled)


def loss_scaler(device: str, precision: str) -> torch.amp.GradScaler:
    """Scales the loss in fp16, whose small gradients would be zero; does nothing in other formats."""
    return torch.amp.GradScaler(device, enabled=precision == "fp16")


def restore_loss_scale(scaler: torch.amp.GradScaler, state: Mapping[str, Any] | None) -> None:
    """Restores the scale of the loss from a checkpoint's state, if it holds one.

    Raises UserError for a damaged one.
    """
    if state and state.get("loss_scale"):
        try:
            scaler.load_state_dict(state["loss_scale"])
        except (AttributeError, KeyError, RuntimeError, TypeError):
            raise UserError(
                f"checkpoint of step {state.get('step')}: loss_scale in state.json is damaged: delete the checkpoint"
            ) from None


def resumed_precision(config: Path, section: str) -> str | None:
    """The precision that a run began with, by the resolved recipe in its folder; None where there is no run.

    Raises UserError for a config.yaml that cannot be read.
    """
    if not config.is_file():
        return None
    try:
        precision = yaml.safe_load(config.read_text(encoding="utf-8"))[section]["precision"]
    except (yaml.YAMLError, ValueError, KeyError, TypeError):
        precision = None
    if not isinstance(precision, str) or precision not in DTYPES:
        raise UserError(f"{config}: damaged, {section}.precision cannot be read: choose another --out")
    return precision
