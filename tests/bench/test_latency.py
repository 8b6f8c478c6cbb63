from __future__ import annotations

import gc
import itertools

import pytest

from edgeembed.bench import latency
from edgeembed.bench.latency import Budget


class Clock:
    """A clock that a call moves on by a time of our choice, so that no test depends on the machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, durations_ms: itertools.cycle[float]) -> None:
        self.now_ns, self.durations_ms = 0, durations_ms
        monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: self.now_ns)

    def call(self) -> None:
        self.now_ns += int(next(self.durations_ms) * 1e6)


def test_percentiles_are_of_single_calls_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, itertools.cycle([1.0] * 9 + [11.0]))
    found = Budget(min_samples=100, min_seconds=0, max_seconds=10, warmup_seconds=0.02).measure(clock.call)
    assert (found.n, found.warmup, found.p50) == (100, 10, 1.0)
    assert found.p99 == 11.0
    assert found.seconds == pytest.approx(0.2)


def test_min_seconds_and_min_samples_must_both_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, itertools.cycle([10.0]))
    assert Budget(min_samples=5, min_seconds=1, max_seconds=10, warmup_seconds=0).measure(clock.call).n == 100
    assert Budget(min_samples=150, min_seconds=1, max_seconds=10, warmup_seconds=0).measure(clock.call).n == 150


def test_a_slow_call_ends_with_the_budget_but_not_before_three(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, itertools.cycle([900.0]))
    assert Budget(max_seconds=9).measure(clock.call).n == 10
    assert Budget(max_seconds=1).measure(clock.call).n == 3


def test_the_garbage_collector_rests_inside_and_works_after() -> None:
    seen = []
    Budget(min_samples=3, min_seconds=0, warmup_seconds=0).measure(lambda: seen.append(gc.isenabled()))
    assert not any(seen)
    assert gc.isenabled()
