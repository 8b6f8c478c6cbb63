"""Signals during a command: exit codes, cleaned-up files, and handlers that are restored afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeembed.cli import app, run
from edgeembed.data.synthetic import render_view
from edgeembed.signals import Interrupted

posix_signals = pytest.mark.skipif(sys.platform == "win32", reason="there os.kill ends the process at once")


@pytest.fixture
def a_handler_of_somebody_else() -> Iterator[object]:
    def handler(_signum: int, _frame: object) -> None:
        raise AssertionError("the handler of the surrounding program was called")

    before = signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("command", [["--help"], ["recipes", "show", "nothing"], ["teech"], []])
def test_after_a_command_sigterm_does_what_it_did_before(
    a_handler_of_somebody_else: object, command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    run(command)
    assert capfd.readouterr() != ("", "")
    assert signal.getsignal(signal.SIGTERM) is a_handler_of_somebody_else


@posix_signals
def test_within_a_command_sigterm_leaves_with_143_and_then_does_what_it_did_before(
    a_handler_of_somebody_else: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(**_options: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(app, "app", stopped)
    with pytest.raises(SystemExit) as left:
        run(["anything"])
    assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is a_handler_of_somebody_else


def test_a_command_runs_outside_the_main_thread_too(a_handler_of_somebody_else: object) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(run(["--help"])))
    thread.start()
    thread.join()
    assert codes == [0]
    assert signal.getsignal(signal.SIGTERM) is a_handler_of_somebody_else


@posix_signals
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_the_reason_whatever_error_comes_of_it(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def half_imported(**_options: object) -> None:
        try:
            os.kill(os.getpid(), number)
        except BaseException:  # as a package does that wraps whatever stops its import
            raise ImportError("a package was imported half") from None

    monkeypatch.setattr(app, "app", half_imported)
    before = signal.getsignal(number)
    assert run(["anything"]) == 128 + number
    assert capfd.readouterr().err == "stopped\n"
    assert signal.getsignal(number) is before


@posix_signals
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_process_reports_it_and_leaves_no_partial_file(tmp_path: Path, number: signal.Signals) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    render_view(seed=0, instance=0, view=0, size_px=48).save(photos / "0.png")
    for name in range(1, 3000):
        os.link(photos / "0.png", photos / f"{name}.png")
    command = [
        sys.executable,
        "-m",
        "edgeembed",
        "embed",
        photos,
        "--threads",
        "1",
        "--out",
        tmp_path / "e.safetensors",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("embedding "):
            assert process.poll() is None
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr.splitlines()[-1]) == (128 + number, "", "stopped")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_quickstart_that_was_stopped_says_how_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from edgeembed.cli import quickstart

    def stopped(out: Path) -> None:
        raise Interrupted(signal.SIGINT, f"step 60 of 150 kept in {out}/teacher, continue with another command")

    monkeypatch.setattr(quickstart, "run_stages", stopped)
    assert run(["quickstart", "--out", str(tmp_path / "q")]) == 130
    message = f"stopped by SIGINT: kept in {tmp_path / 'q'}, continue with the same `edgeembed quickstart`"
    assert message in capfd.readouterr().err
