"""What a command does to the process that runs it: nothing that outlasts the command."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from edgeembed.cli import app, run


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


@pytest.mark.skipif(sys.platform == "win32", reason="there os.kill ends the process at once")
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
