"""What a training run logs: a progress line, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType

import numpy as np

from edgeembed.files import write_failure
from edgeembed.progress import FORECAST_AFTER_SECONDS, LOG_EVERY_SECONDS, duration, progress_bar
from edgeembed.run_folder import RunFolder

log = logging.getLogger(__name__)

RECENT_SECONDS = 120.0  # a run may become faster, or slower, than it began
LONG_STEP_SECONDS = 5.0  # a first step that took longer is forecast from by itself


class TrainingLog:
    """Writes scalars of a run everywhere at once; a context manager.

    `work_S` says what each of the run's steps costs, in any unit: steps on larger images take longer, and a forecast
    from the first ones should know it. `remark` is what else should be known of a forecast from the first steps.
    """

    def __init__(self, run: RunFolder, *, first_step: int, work_S: Sequence[float], remark: str = "") -> None:
        self.run, self.first_step, self.total_steps, self.images = run, first_step, len(work_S), 0
        self.work_done_S = np.concatenate([[0.0], np.cumsum(work_S)])
        self.remark = remark
        self.first_done: float | None = None  # when the first step ended
        self.recent: deque[tuple[float, int]] = deque()  # when steps ended that say how fast the run is now
        self.forecast_given = False
        from torch.utils.tensorboard import SummaryWriter  # not for those who only want to know what takes long

        self.writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=first_step)
        self.progress = progress_bar("{task.fields[note]}")
        self.task = self.progress.add_task("steps", total=self.total_steps, completed=first_step, note="")
        self.started = self.printed = time.monotonic()

    def __enter__(self) -> TrainingLog:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        try:
            self.writer.close()
        except OSError as failure:
            if kind is None:
                raise write_failure(failure, self.run.path / "tensorboard") from failure

    def step(self, step: int, note: str, *, images: int) -> None:
        """Moves the progress to `step` finished steps, the last of which had that many images."""
        self.images += images
        seconds = time.monotonic() - self.started
        rate = self.images / max(1e-9, seconds)
        self.progress.update(self.task, completed=step, note=f"{note}  {rate:.0f} images/s")
        self._note_moment(step)
        self._forecast(step, seconds)
        if not self.progress.console.is_terminal and time.monotonic() - self.printed > LOG_EVERY_SECONDS:
            self.printed = time.monotonic()
            left = duration(self._seconds_left(step))
            log.info("step %d/%d  %s  %.0f images/s  %s left", step, self.total_steps, note, rate, left)

    def _note_moment(self, step: int) -> None:
        """Keeps the moments of the last minutes; the first step is forgotten as soon as there is another."""
        now = time.monotonic()
        if not self.recent:
            self.recent.append((self.started, self.first_step))
        elif len(self.recent) == 2 and self.recent[0][1] == self.first_step:
            self.recent.popleft()
        self.recent.append((now, step))
        while len(self.recent) > 2 and now - self.recent[1][0] > RECENT_SECONDS:
            self.recent.popleft()

    def _forecast(self, step: int, seconds: float) -> None:
        """Says once, within seconds of the first step, how long the run will take."""
        now = time.monotonic()
        if self.first_done is None:
            self.first_done = now
        elif not self.forecast_given and step < self.total_steps and now - self.first_done > FORECAST_AFTER_SECONDS:
            self.forecast_given = True
            each = (now - self.first_done) / (step - self.first_step - 1)
            self._say(step, f"({each:.2f} s a step so far)")
        if step == self.first_step + 1 < self.total_steps and seconds > LONG_STEP_SECONDS:
            self._say(step, "(judged by the first step)")

    def _seconds_left(self, step: int) -> float:
        """The work that is left at the speed of the last minutes."""
        since, first = self.recent[0]
        done = self.work_done_S[step] - self.work_done_S[first]
        left = self.work_done_S[-1] - self.work_done_S[step]
        return float((time.monotonic() - since) * left / max(done, 1e-9))

    def _say(self, step: int, basis: str) -> None:
        left = duration(self._seconds_left(step))
        log.info("about %s to go, evaluation apart %s%s", left, basis, self.remark)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Logs values, except None (a figure that could not be scored) and those that are not finite (the gradient norm
        of a step left out in fp16).
        """
        rate = self.images / max(1e-9, time.monotonic() - self.started)
        finite = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        self.run.log({"step": step, **finite, "images_per_second": round(rate, 1)})
        try:
            for name, value in finite.items():
                self.writer.add_scalar(name, value, step)
        except OSError as failure:
            raise write_failure(failure, self.run.path / "tensorboard") from failure
