"""What a person is told of how long a run will take."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from edgeembed import progress
from edgeembed.progress import counter, duration, stage, track
from edgeembed.run_folder import RunFolder
from edgeembed.training.recorder import TrainingLog


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 s"), (119, "119 s"), (130, "2 min"), (4000, "67 min"), (9000, "2.5 h"), (200_000, "2.3 days")],
)
def test_a_time_is_told_in_the_unit_that_a_person_would_choose(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def run_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, work_S: list[float], seconds: list[float], first_step: int = 0
) -> None:
    """Steps that take these times."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    with TrainingLog(RunFolder(path=tmp_path), first_step=first_step, work_S=work_S) as log:
        for step, took in enumerate(seconds, start=first_step + 1):
            clock.now += took
            log.step(step, "loss 1.0", images=8)


def test_a_run_says_how_long_it_will_take_once_within_ten_seconds_of_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_steps(tmp_path, monkeypatch, work_S=[1.0] * 1000, seconds=[4.0] + [0.5] * 20)
    told = caplog.messages
    assert told == ["about 8 min to go, evaluation apart (0.50 s a step so far)"]  # the slow first step left out


def test_a_slow_first_step_is_enough_to_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_steps(tmp_path, monkeypatch, work_S=[1.0] * 11, seconds=[600.0, 300.0])
    first, second = (line for line in caplog.messages if line.startswith("about"))
    assert first == "about 100 min to go, evaluation apart (judged by the first step)"
    assert second == "about 45 min to go, evaluation apart (300.00 s a step so far)"


def test_the_forecast_knows_that_later_steps_cost_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_steps(tmp_path, monkeypatch, work_S=[1.0] * 50 + [4.0] * 50, seconds=[1.0] * 10)
    assert caplog.messages == [
        "about 4 min to go, evaluation apart (1.00 s a step so far)"  # 45 + 4 * 50 seconds
    ]


def test_a_resumed_run_counts_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_steps(tmp_path, monkeypatch, work_S=[1.0] * 100, seconds=[1.0] * 6, first_step=50)
    assert "about 45 s to go" in caplog.text


def test_the_forecast_follows_the_last_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_steps(tmp_path, monkeypatch, work_S=[1.0] * 600, seconds=[1.0] * 60 + [4.0] * 40)
    *_, last = caplog.messages
    assert last.startswith("step 93/600")
    assert last.endswith("34 min left")  # 507 steps of 4 s; at the mean of all steps it would be 18


def test_who_logs_warnings_only_sees_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes rich take stderr for a terminal
    run_steps(tmp_path, monkeypatch, work_S=[1.0] * 10, seconds=[40.0] * 10)
    with stage("saving"), counter("rendering", total=2) as rendered:
        rendered(1)
    assert list(track("ab", "reading [/a folder]", total=2)) == ["a", "b"]
    assert (caplog.messages, capfd.readouterr()) == ([], ("", ""))


def test_a_name_in_brackets_is_no_markup_in_a_progress_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(track("ab", "reading [/a folder]", total=2)) == ["a", "b"]
    assert "reading [/a folder]" in capfd.readouterr().err
