"""Ctrl-C and SIGTERM set a flag within a block, and act as before after it."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from edgeembed.signals import Interrupted, stop_request


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_the_flag_and_the_handler_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_request() as request:
        assert request.signum is None
        os.kill(os.getpid(), number)
        assert request.signum == number
        assert signal.getsignal(number) == signal.SIG_DFL  # a second signal ends the process
    assert signal.getsignal(number) == before


def test_an_interrupted_command_has_the_exit_code_of_its_signal() -> None:
    error = Interrupted(signal.SIGTERM, "step 3 is saved")
    assert (str(error), error.exit_code) == ("stopped by SIGTERM: step 3 is saved", 143)


def test_outside_the_main_thread_a_loop_runs_without_being_told_to_stop() -> None:
    found: list[int | None] = []

    def loop() -> None:
        with stop_request() as request:
            found.append(request.signum)

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    assert found == [None]
