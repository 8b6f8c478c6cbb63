"""The gate's rates in simulation: files that lose twice the limit hardly ever pass, files without loss do not fail."""

from __future__ import annotations

import json
import sys

import gate_power
import numpy as np
import pytest

LIMIT = 0.005


@pytest.mark.parametrize(("size", "draws"), [(16, 60), (296, 60), (1250, 25)])
def test_false_passes_are_below_5_percent_and_false_refusals_below_10(size: int, draws: int) -> None:
    results = list(gate_power.simulate([size], LIMIT, draws))
    worst = gate_power.summary(results)  # the highest of 30 rates: two standard errors of few draws are allowed
    assert worst["worst_false_pass"] < 5 + 2 * 100 * np.sqrt(0.05 * 0.95 / draws)
    assert worst["worst_false_refusal"] < 10 + 2 * 100 * np.sqrt(0.1 * 0.9 / draws)
    assert worst["worst_false_pass_lenient"] > 60 or size > 296
    for case, _, by_class, found in results:
        assert found.passed + found.refused + found.not_shown == pytest.approx(100)
        if (case.name, case.times_limit, size) == ("int8, shifted", 0, 1250):
            assert found.passed > (40 if by_class else 60)


def test_the_mean_loss_of_each_population_is_its_true_loss() -> None:
    for case in gate_power.cases(LIMIT):
        assert case.lost_Q.mean() == pytest.approx(case.times_limit * LIMIT, abs=LIMIT / 25), case.name
        assert len(case.lost_Q) == len(case.class_Q) == 2485
        assert case.class_Q.max() == 80


def test_drawn_classes_come_with_all_their_queries_and_one_drawn_twice_is_two() -> None:
    case = next(gate_power.cases(LIMIT))
    rng = np.random.default_rng(0)
    lost_Q, class_Q = gate_power.draw(case, 2000, by_class=True, rng=rng)
    assert len(lost_Q) == len(class_Q) == 2000
    sizes = np.bincount(class_Q)[:-1]
    assert set(sizes.tolist()) <= set(np.bincount(case.class_Q).tolist())
    assert len(gate_power.draw(case, 16, by_class=False, rng=rng)[0]) == 16


def test_the_script_ends_with_one_json_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gate_power.py", "--draws", "2", "--sizes", "16"])
    gate_power.main()
    *table, last = capsys.readouterr().out.strip().splitlines()
    assert table[0].startswith("| queries | drawn |")
    assert json.loads(last)["worst_false_pass"] == 0.0
