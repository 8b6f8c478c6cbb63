"""How long one call takes, as percentiles of many calls: a mean would hide what a user waits for now and then.

Timed with the garbage collector off, after a warm-up, on a monotonic clock of nanoseconds (MLPerf's single stream).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LEAST_SAMPLES = 3  # even where one call outlasts the whole budget


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds a call takes; `n` calls in `seconds` after `warmup` calls that do not count."""

    p50: float
    p90: float
    p95: float
    p99: float
    n: int
    warmup: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When to stop timing: with enough samples over enough time, or when the time is up."""

    min_samples: int = 200
    min_seconds: float = 2.0
    max_seconds: float = 10.0
    warmup_seconds: float = 0.5

    def measure(self, call: Callable[[], object]) -> Latency:
        return measure(
            call,
            min_samples=self.min_samples,
            min_seconds=self.min_seconds,
            max_seconds=self.max_seconds,
            warmup_seconds=self.warmup_seconds,
        )


def measure(
    call: Callable[[], object],
    *,
    min_samples: int = 200,
    min_seconds: float = 2.0,
    max_seconds: float = 10.0,
    warmup_seconds: float = 0.5,
) -> Latency:
    """Calls until `min_samples` and `min_seconds` are both reached or `max_seconds` are over, but at least 3 times."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        warmup = _repeat(call, lambda _count, seconds: seconds >= warmup_seconds)
        samples_ns = _repeat(
            call,
            lambda count, seconds: (
                count >= LEAST_SAMPLES and (seconds >= max_seconds or (count >= min_samples and seconds >= min_seconds))
            ),
        )
    finally:
        if was_enabled:
            gc.enable()
    p50, p90, p95, p99 = (float(value) / 1e6 for value in np.percentile(samples_ns, (50, 90, 95, 99)))
    return Latency(
        p50=p50, p90=p90, p95=p95, p99=p99, n=len(samples_ns), warmup=len(warmup), seconds=sum(samples_ns) / 1e9
    )


def _repeat(call: Callable[[], object], enough: Callable[[int, float], bool]) -> list[int]:
    """Nanoseconds of each call, until `enough` of (calls, seconds since the first)."""
    samples_ns: list[int] = []
    started = time.perf_counter_ns()
    while True:
        before = time.perf_counter_ns()
        call()
        after = time.perf_counter_ns()
        samples_ns.append(after - before)
        if enough(len(samples_ns), (after - started) / 1e9):
            return samples_ns
