"""What a person watches during a long run: a progress line on stderr, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from edgeembed.run import RunFolder

if TYPE_CHECKING:
    from rich.progress import Progress

ItemT = TypeVar("ItemT")

LOG_EVERY_SECONDS = 30.0  # between lines where stderr is a file


class TrainingLog:
    """Writes scalars of a run everywhere at once; a context manager."""

    def __init__(self, run: RunFolder, *, first_step: int, total_steps: int) -> None:
        self.run, self.first_step, self.total_steps, self.images = run, first_step, total_steps, 0
        from torch.utils.tensorboard import SummaryWriter  # not for those who only want to know what takes long

        self.writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=first_step)
        self.progress = progress_bar("{task.fields[note]}")
        self.task = self.progress.add_task("steps", total=total_steps, completed=first_step, note="")
        self.started = self.printed = time.monotonic()

    def __enter__(self) -> TrainingLog:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        self.writer.close()

    def step(self, step: int, note: str, *, images: int) -> None:
        """Moves the progress to `step` finished steps, the last of which had that many images."""
        self.images += images
        seconds = time.monotonic() - self.started
        rate = self.images / max(1e-9, seconds)
        self.progress.update(self.task, completed=step, note=f"{note}  {rate:.0f} images/s")
        if not self.progress.console.is_terminal and time.monotonic() - self.printed > LOG_EVERY_SECONDS:
            self.printed = time.monotonic()
            left = (self.total_steps - step) * seconds / (step - self.first_step)
            print(f"step {step}/{self.total_steps}  {note}  {rate:.0f} images/s  {left:.0f} s left", file=sys.stderr)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        rate = self.images / max(1e-9, time.monotonic() - self.started)
        self.run.log({"step": step, **values, "images_per_second": round(rate, 1)})
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)


def progress_bar(note: str = "") -> Progress:
    """A rich progress line on stderr; silent where stderr is not a terminal."""
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
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(note),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def track(items: Iterable[ItemT], text: str, *, total: int) -> Iterator[ItemT]:
    """Passes items on while a progress line counts them."""
    with progress_bar() as progress:
        yield from progress.track(items, total=total, description=text)


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
    """Says on stderr what is being done and, afterwards, how long it took."""
    started = time.monotonic()
    print(f"{text} ...", file=sys.stderr, flush=True)
    yield
    print(f"{text}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
