"""Ctrl-C and SIGTERM as a flag, so that a loop can save its state before it stops."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupted(Exception):
    """Raised when Ctrl-C or SIGTERM stopped the work and what was done was saved. Exit code 128 + signal number."""

    def __init__(self, signum: int, kept: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}: {kept}")
        self.signum = signum
        self.exit_code = 128 + signum


class StopRequest:
    """A flag that the first Ctrl-C or SIGTERM sets; `signum` is None until then."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def set(self, signum: int, _frame: FrameType | None) -> None:
        """The signal handler."""
        self.signum = signum
        signal.signal(signum, signal.SIG_DFL)  # a second one ends the process at once


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Yields a flag; within the block SIGINT and SIGTERM set it instead of ending the process.

    Python lets only the main thread handle signals, so that in other threads the flag is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    # Restored afterwards, so that after the loop Ctrl-C works as usual again.
    previous = {number: signal.signal(number, request.set) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
