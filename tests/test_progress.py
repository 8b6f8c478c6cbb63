"""Progress lines, stages and durations as text."""

from __future__ import annotations

import logging

import pytest

from edgeembed.progress import counter, duration, stage, track


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 s"), (119, "119 s"), (130, "2 min"), (4000, "67 min"), (9000, "2.5 h"), (200_000, "2.3 days")],
)
def test_a_time_is_told_in_the_unit_that_a_person_would_choose(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_who_logs_warnings_only_sees_no_progress(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes rich take stderr for a terminal
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
