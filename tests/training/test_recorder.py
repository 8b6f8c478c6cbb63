"""The recorder of both training loops: estimates, logs, when it evaluates and saves, and how a signal stops a run."""

from __future__ import annotations

import json
import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgeembed.run_folder import RunFolder
from edgeembed.signals import Interrupted
from edgeembed.training import recorder as recorder_module
from edgeembed.training.recorder import Recorder


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(recorder_module, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@dataclass(frozen=True)
class Scores:
    """An evaluation with one score."""

    value: float | None

    @property
    def summary(self) -> str:
        return f"val mAP {self.value}"

    @property
    def scalars(self) -> dict[str, float | None]:
        return {"val_map": self.value}


def open_recorder(
    folder: Path, *, step_costs: list[float], first_step: int = 0, eval_every: int = 0, checkpoint_every: int = 0
) -> Recorder[Scores]:
    return Recorder(
        RunFolder(path=folder),
        command="teacher-train",
        first_step=first_step,
        step_costs=step_costs,
        eval_every=eval_every,
        checkpoint_every=checkpoint_every,
        keep_checkpoints=9,
    )


def run_steps(
    folder: Path, clock: Clock, *, step_costs: list[float], seconds: list[float], first_step: int = 0
) -> None:
    """Steps that take these times."""
    with open_recorder(folder, step_costs=step_costs, first_step=first_step) as recorder:
        for step, took_s in enumerate(seconds, start=first_step + 1):
            clock.now += took_s
            recorder.step(step, loss=1.0, num_images=8, scalars={"loss": 1.0})


def test_the_time_left_is_logged_once_within_ten_seconds_of_the_first_step(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    run_steps(tmp_path, clock, step_costs=[1.0] * 1000, seconds=[4.0] + [0.5] * 20)
    # The slow first step is left out.
    assert caplog.messages == ["about 8 min left without evaluations (0.50 s per step so far)"]


def test_a_slow_first_step_is_enough_for_an_estimate(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    run_steps(tmp_path, clock, step_costs=[1.0] * 11, seconds=[600.0, 300.0])
    first, second = (line for line in caplog.messages if line.startswith("about"))
    assert first == "about 100 min left without evaluations (estimated from the first step)"
    assert second == "about 45 min left without evaluations (300.00 s per step so far)"


def test_the_estimate_knows_that_later_steps_cost_more(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    run_steps(tmp_path, clock, step_costs=[1.0] * 50 + [4.0] * 50, seconds=[1.0] * 10)
    # 45 + 4 * 50 seconds.
    assert caplog.messages == ["about 4 min left without evaluations (1.00 s per step so far)"]


def test_a_resumed_run_counts_the_steps_that_are_left(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    run_steps(tmp_path, clock, step_costs=[1.0] * 100, seconds=[1.0] * 6, first_step=50)
    assert "about 45 s left" in caplog.text


def test_the_estimate_follows_the_last_minutes(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    run_steps(tmp_path, clock, step_costs=[1.0] * 600, seconds=[1.0] * 60 + [4.0] * 40)
    *_, last = caplog.messages
    assert last.startswith("step 93/600  loss 1.0000")
    assert last.endswith("34 min left")  # 507 steps of 4 s; at the mean of all steps it would be 18


def test_a_log_of_warnings_has_no_progress(
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("FORCE_COLOR", "1")  # with it rich takes stderr for a terminal
    run_steps(tmp_path, clock, step_costs=[1.0] * 10, seconds=[40.0] * 10)
    assert (caplog.messages, capfd.readouterr()) == ([], ("", ""))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def parts() -> dict[str, Any]:
    """A network with an optimiser that has state."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizers": [optimizer], "scaler": torch.amp.GradScaler("cpu", enabled=False)}


def test_logs_evaluations_and_checkpoints_come_every_so_many_steps_and_after_the_last_one(tmp_path: Path) -> None:
    scores = iter([Scores(0.25), Scores(None), Scores(0.75)])
    with open_recorder(tmp_path, step_costs=[1.0] * 23, eval_every=9, checkpoint_every=8) as recorder:
        for step in range(1, 24):
            recorder.step(step, loss=2.0, num_images=4, scalars={"loss": 2.0, "gradient_norm": float("inf")})
            recorder.evaluate(step, lambda: next(scores))
            recorder.save_and_stop(step, **parts(), state={"note": "kept"})
    found = [
        {name: value for name, value in line.items() if name != "images_per_second"} for line in read_metrics(tmp_path)
    ]
    assert found == [
        {"step": 9, "val_map": 0.25},
        {"step": 10, "loss": 2.0},  # an infinite norm is left out
        {"step": 18},  # no query could be scored
        {"step": 20, "loss": 2.0},
        {"step": 23, "loss": 2.0},
        {"step": 23, "val_map": 0.75},
    ]
    checkpoints = RunFolder(path=tmp_path).checkpoints()
    assert [path.name for path in checkpoints] == ["step-00000008", "step-00000016", "step-00000023"]
    state = json.loads((checkpoints[-1] / "state.json").read_text())
    assert state == {"step": 23, "loss_scale": {}, "note": "kept"}
    assert recorder.final_evaluation(lambda: Scores(0.0)) == Scores(0.75)
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(("eval_every", "expected"), [(5, Scores(0.5)), (0, None)])
def test_a_run_resumed_after_its_last_step_is_evaluated_unless_it_never_is(
    tmp_path: Path, eval_every: int, expected: Scores | None
) -> None:
    with open_recorder(tmp_path, step_costs=[1.0] * 4, first_step=4, eval_every=eval_every) as recorder:
        pass
    assert recorder.final_evaluation(lambda: Scores(0.5)) == expected


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_after_its_step_with_a_checkpoint(tmp_path: Path, signum: signal.Signals) -> None:
    done = []

    def train() -> None:
        with open_recorder(tmp_path, step_costs=[1.0] * 8) as recorder:
            for step in range(1, 9):
                if step == 3:
                    os.kill(os.getpid(), signum)
                recorder.step(step, loss=1.0, num_images=1, scalars={})
                done.append(step)
                recorder.save_and_stop(step, **parts())

    with pytest.raises(Interrupted, match=f"stopped by {signum.name}: step 3 of 8 kept in .*--resume") as stopped:
        train()
    assert done == [1, 2, 3]
    assert stopped.value.exit_code == 128 + signum
    assert [path.name for path in RunFolder(path=tmp_path).checkpoints()] == ["step-00000003"]
