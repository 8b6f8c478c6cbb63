"""Progress of long work on stderr: a bar on a terminal, a line in the log now and then elsewhere.

Where only warnings are logged, as with `--quiet`, nothing is shown.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")

LOG_EVERY_SECONDS = 30.0  # between lines where stderr is no terminal
FORECAST_AFTER_SECONDS = 3.0  # not counting the first step, which includes work that is done only once


def duration(seconds: float) -> str:
    """A time with a unit that is easy to read: 45 s, 12 min, 3.4 h, 5.2 days."""
    for unit, size, limit in (("s", 1.0, 120.0), ("min", 60.0, 7200.0), ("h", 3600.0, 172800.0)):
        if seconds < limit:
            return f"{seconds / size:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400.0:.1f} days"


def progress_bar(note: str = "") -> Progress:
    """A progress bar of rich on stderr; it shows nothing where stderr is no terminal or only warnings are logged."""
    from rich.console import Console  # rich is not in the base install, which uses only `stage`
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(note, markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (console.is_terminal and log.isEnabledFor(logging.INFO)),
    )


def track(items: Iterable[ItemT], text: str, *, total: int) -> Iterator[ItemT]:
    """Yields the items and shows the progress; where stderr is no terminal, log lines say how long it will take."""
    if importlib.util.find_spec("rich") is not None:  # the base install does not have rich
        with progress_bar() as progress:
            if progress.console.is_terminal:
                yield from progress.track(items, total=total, description=text)
                return
    started = time.monotonic()
    next_line = started + FORECAST_AFTER_SECONDS
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now > next_line:
            next_line = now + LOG_EVERY_SECONDS
            left = duration((now - started) * (total - done) / done)
            log.info("%s: %d of %d done, about %s to go", text, done, total, left)
        yield item


@contextlib.contextmanager
def counter(text: str, *, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that shows how many of `total` are done; it shows nothing where rich is not installed."""
    if importlib.util.find_spec("rich") is None:
        yield lambda _done: None
        return
    with progress_bar() as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextlib.contextmanager
def stage(text: str) -> Iterator[None]:
    """Logs `text` at the start of the block, and at its end how long it took."""
    started = time.monotonic()
    log.info("%s ...", text)
    yield
    log.info("%s: %.1f s", text, time.monotonic() - started)
