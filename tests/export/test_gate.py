"""The gate: figures against thresholds, and losses that are chance let pass."""

from __future__ import annotations

import numpy as np
import pytest

from edgeembed.bundle import parity
from edgeembed.export.gate import MapLoss, judge, map_loss
from edgeembed.export.recipe import GateSection, Thresholds

GATE = GateSection()


def unit(count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(1)
    reference = draw.normal(size=(count, 64)).astype(np.float32)
    other = reference + noise * draw.normal(size=(count, 64)).astype(np.float32)
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (reference, other))


def test_the_gate_names_the_figure_that_fails() -> None:
    good, bad = parity(*unit(50, 0.0)), parity(*unit(50, 0.5))
    assert judge(good, None, GATE.fp32).reasons == ()
    assert "cosine p1" in judge(bad, None, GATE.fp32).reasons[0]
    assert "cosine p50" in judge(bad, None, GATE.int8).reasons[0]
    assert judge(good, MapLoss(value=0.004, low=0.001, high=0.007), GATE.int8).reasons == ()
    reason = judge(good, MapLoss(value=0.02, low=0.01, high=0.03), GATE.int8).reasons[0]
    assert reason == "mAP is 2.00 points [1.00, 3.00] below fp32's, more than 0.5"
    broken = unit(5, 0.0)[0]
    assert parity(broken, broken * np.nan).cosine_p1 == -1.0


def test_transformers_may_lose_a_point_and_others_half_of_one() -> None:
    loss = MapLoss(value=0.008, low=0.006, high=0.01)
    good = parity(*unit(50, 0.0))
    assert judge(good, loss, GATE.of("int8", transformer=True)).reasons == ()
    assert judge(good, loss, GATE.of("int8", transformer=False)).reasons != ()
    assert judge(good, loss, Thresholds()).reasons == ()


def test_one_pair_that_changes_places_among_few_queries_refuses_nothing_and_a_loss_on_all_of_them_does() -> None:
    before_Q = np.full(12, 0.9)
    swapped_Q = before_Q.copy()
    swapped_Q[3] = 0.4
    good = parity(*unit(50, 0.0))
    one = map_loss(before_Q, swapped_Q)
    assert one.value == pytest.approx(0.5 / 12)
    assert one.low == 0.0
    assert judge(good, one, GATE.int8).reasons == ()
    everywhere = map_loss(before_Q, before_Q - 0.1)
    assert (everywhere.low, everywhere.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert judge(good, everywhere, GATE.int8).reasons != ()


def test_a_loss_is_paired_so_that_hard_and_easy_queries_do_not_blur_it() -> None:
    draw = np.random.default_rng(0)
    before_Q = draw.uniform(size=300)
    loss = map_loss(before_Q, before_Q - draw.normal(0.006, 0.01, size=300))
    assert 0.004 < loss.low < loss.value < loss.high < 0.008
