"""Measures how long one call takes, in percentiles: a mean would hide the few slow calls that users notice.

Timed with the garbage collector off, after a warm-up, on a monotonic clock of nanoseconds (MLPerf's single stream).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LEAST_SAMPLES = 3  # even where a single call takes longer than the whole budget


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Percentiles of the time of a call in milliseconds; `n` calls in `seconds` after `warmup` calls not counted."""

    p50: float
    p90: float
    p95: float
    p99: float
    n: int
    warmup: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When to stop timing: after enough samples over enough time, or when `max_seconds` are over."""

    # Of 200 calls two are slower than the p99, so that no single call decides it.
    min_samples: int = 200
    min_seconds: float = 2.0
    max_seconds: float = 10.0
    warmup_seconds: float = 0.5

    def measure(self, call: Callable[[], object]) -> Latency:
        """Times a call as often as the budget allows, but at least 3 times."""
        was_enabled = gc.isenabled()
        # A collection in the middle of a call would count as time of the network.
        gc.disable()
        try:
            warmup = _repeat(call, lambda _count, seconds: seconds >= self.warmup_seconds)
            samples_ns = _repeat(call, self._is_enough)
        finally:
            if was_enabled:
                gc.enable()
        p50, p90, p95, p99 = (float(value) / 1e6 for value in np.percentile(samples_ns, (50, 90, 95, 99)))
        # Of the calls alone, without the loop around them.
        seconds = sum(samples_ns) / 1e9
        return Latency(p50=p50, p90=p90, p95=p95, p99=p99, n=len(samples_ns), warmup=len(warmup), seconds=seconds)

    def _is_enough(self, count: int, seconds: float) -> bool:
        if count < LEAST_SAMPLES:
            return False
        return seconds >= self.max_seconds or (count >= self.min_samples and seconds >= self.min_seconds)


def _repeat(call: Callable[[], object], is_enough: Callable[[int, float], bool]) -> list[int]:
    """The nanoseconds of each call, until `is_enough` of (number of calls, seconds since the first)."""
    samples_ns: list[int] = []
    started = time.perf_counter_ns()
    while True:
        before = time.perf_counter_ns()
        call()
        after = time.perf_counter_ns()
        samples_ns.append(after - before)
        if is_enough(len(samples_ns), (after - started) / 1e9):
            return samples_ns
