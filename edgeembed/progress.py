"""What a person watches during a long run: a progress line on stderr, metrics.jsonl, TensorBoard.

Whoever logs warnings only, as `--quiet` does, sees neither progress lines nor stages.
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

LOG_EVERY_SECONDS = 30.0  # between lines where stderr is a file
FORECAST_AFTER_SECONDS = 3.0  # of steps behind the first, whose time holds much that comes once


def duration(seconds: float) -> str:
    """A time in the unit that a person would choose: 45 s, 12 min, 3.4 h, 5.2 days."""
    for unit, size, limit in (("s", 1.0, 120.0), ("min", 60.0, 7200.0), ("h", 3600.0, 172800.0)):
        if seconds < limit:
            return f"{seconds / size:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400.0:.1f} days"


def progress_bar(note: str = "") -> Progress:
    """A rich progress line on stderr; silent where stderr is not a terminal, or only warnings are logged."""
    from rich.console import Console  # not in the base install, which needs `stage` alone
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
    """Passes items on while a progress line counts them; where stderr is a file, lines say how long it will take."""
    if importlib.util.find_spec("rich") is not None:  # the base install lacks it
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
    """A function that shows how many of `total` are done; it shows nothing where rich is not installed."""
    if importlib.util.find_spec("rich") is None:
        yield lambda _done: None
        return
    with progress_bar() as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextlib.contextmanager
def stage(text: str) -> Iterator[None]:
    """Logs what is being done and, afterwards, how long it took."""
    started = time.monotonic()
    log.info("%s ...", text)
    yield
    log.info("%s: %.1f s", text, time.monotonic() - started)
