"""A progress line on stderr that needs only the standard library, for work on a device."""

from __future__ import annotations

import logging
import sys
import time

log = logging.getLogger(__name__)

SILENT_SECONDS = 2.0  # for work that takes less, nothing is shown
REDRAW_SECONDS = 0.2
LOG_EVERY_SECONDS = 15.0  # where stderr is no terminal


class ImageProgress:
    """Shows the number of images done: a line on a terminal, elsewhere a line in the log now and then.

    `total` is None where the number of images is not known. With `always` the line is drawn at any log level, and
    nothing is logged where stderr is no terminal.
    """

    def __init__(self, total: int | None, *, always: bool = False) -> None:
        self.total, self.always = total, always
        self.on_terminal = sys.stderr.isatty()
        self.started = time.monotonic()
        # As if a line had just been shown, so that the first one appears after SILENT_SECONDS.
        self.shown = self.started + SILENT_SECONDS - (REDRAW_SECONDS if self.on_terminal else LOG_EVERY_SECONDS)
        self.drawn = False

    def __call__(self, done: int) -> None:
        """Shows that `done` images are done, unless something was shown very recently."""
        now = time.monotonic()
        if now - self.shown < (REDRAW_SECONDS if self.on_terminal else LOG_EVERY_SECONDS):
            return
        self.shown = now
        rate = done / max(1e-9, now - self.started)
        text = f"{done} images, {rate:.0f} images/s"
        if self.total is not None:
            left = (self.total - done) / max(rate, 1e-9)
            text = f"{done}/{self.total} images, {rate:.0f} images/s, {left:.0f} s left"
        if not self.on_terminal:
            if not self.always:
                log.info("%s", text)
        elif self.always or log.isEnabledFor(logging.INFO):
            self.drawn = True
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Clears the line, so that the next message starts on an empty one."""
        if self.drawn:
            self.drawn = False
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
