"""When each step of a training run ended, taken from its own log: what the scripts that time steps share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


@contextlib.contextmanager
def step_moments() -> Iterator[list[float]]:
    """Within the block, a list that grows by one moment, in seconds, with each step that a run logs."""
    from edgeembed.training.recorder import TrainingLog

    moments: list[float] = []
    log_step = TrainingLog.step

    def noting_step(self: TrainingLog, step: int, note: str, *, images: int) -> None:
        moments.append(time.perf_counter())
        log_step(self, step, note, images=images)

    TrainingLog.step = noting_step  # type: ignore[method-assign]
    try:
        yield moments
    finally:
        TrainingLog.step = log_step  # type: ignore[method-assign]
