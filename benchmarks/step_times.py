"""When each step of a training run ended, taken from its own log: what the scripts that time steps share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def step_moments() -> Iterator[list[float]]:
    """Within the block, a list that grows by one moment, in seconds, with each step that a run logs."""
    from edgeembed.training.recorder import Recorder

    moments: list[float] = []
    log_step = Recorder.step

    def noting_step(self: Recorder[Any], step: int, **values: Any) -> None:
        moments.append(time.perf_counter())
        log_step(self, step, **values)

    Recorder.step = noting_step  # type: ignore[method-assign]
    try:
        yield moments
    finally:
        Recorder.step = log_step  # type: ignore[method-assign]
