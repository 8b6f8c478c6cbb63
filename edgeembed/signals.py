"""Ctrl-C and SIGTERM as a flag that a loop reads, so that it can save before it leaves."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupted(Exception):
    """Ctrl-C or SIGTERM came, and what was done is on disk. Exit code 128 + signal number."""

    def __init__(self, signum: int, kept: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}: {kept}")
        self.signum = signum
        self.exit_code = 128 + signum


class StopRequest:
    """Set by the first Ctrl-C or SIGTERM, so that a loop can save before it leaves."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def set(self, signum: int, _frame: FrameType | None) -> None:
        self.signum = signum
        signal.signal(signum, signal.SIG_DFL)  # a second one ends the process at once


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Within the block, SIGINT and SIGTERM only set a flag.

    Python lets only the main thread handle signals: in other threads the flag is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request.set) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
