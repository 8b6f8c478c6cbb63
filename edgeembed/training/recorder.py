"""What both training loops do beside training: log, evaluate, save checkpoints, and stop after a signal."""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from edgeembed.files import write_failure
from edgeembed.progress import FORECAST_AFTER_SECONDS, LOG_EVERY_SECONDS, duration, progress_bar
from edgeembed.run_folder import RunFolder
from edgeembed.signals import Interrupted, stop_request
from edgeembed.training.checkpoints import save_checkpoint
from edgeembed.training.time_left import TimeLeft

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

SCALARS_EVERY_STEPS = 10
LONG_STEP_SECONDS = 5.0  # a first step that took longer is enough for an estimate


class Evaluation(Protocol):
    """Scores on the val split, as the recorder logs them."""

    @property
    def summary(self) -> str:
        """The main score for the progress line, such as "val mAP 0.812"; empty where nothing could be scored."""

    @property
    def scalars(self) -> dict[str, float | None]:
        """Scores by their names in metrics.jsonl."""


EvaluationT = TypeVar("EvaluationT", bound=Evaluation)


class Recorder(Generic[EvaluationT]):
    """Writes a run's progress line, metrics.jsonl, TensorBoard files and checkpoints; use it as a context manager.

    Within the block Ctrl-C and SIGTERM do not end the process; `save_and_stop` does, with a checkpoint. A step is
    counted from 1 here: it is the number of steps that are done.
    """

    def __init__(
        self,
        run: RunFolder,
        *,
        command: str,
        first_step: int,
        step_costs: Sequence[float],
        eval_every: int,
        checkpoint_every: int,
        keep_checkpoints: int,
        time_left_remark: str = "",
    ) -> None:
        """Prepares the log of a run, or of the rest of a resumed one.

        `command` resumes the run: "teacher-train" or "distill". `first_step`: how many steps a resumed run has done;
        metrics that it logged after them are dropped. `step_costs`: see TimeLeft; one for each step.

        `eval_every` and `checkpoint_every` are in steps, 0 for never. `time_left_remark` is added to the estimates.
        """
        self.run, self.command, self.first_step, self.total_steps = run, command, first_step, len(step_costs)
        run.drop_metrics_after(first_step)
        self.eval_every, self.checkpoint_every, self.keep_checkpoints = eval_every, checkpoint_every, keep_checkpoints
        self.evaluation: EvaluationT | None = None  # the latest
        self._num_images = 0
        self._time_left_remark = time_left_remark
        self._first_step_done_s: float | None = None
        self._estimate_given = False
        self._started_s = self._logged_s = time.monotonic()
        self._time_left = TimeLeft(step_costs, first_step=first_step, started_s=self._started_s)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Recorder[EvaluationT]:
        # Left in reverse order: signals end the process again only after the log is closed.
        self._stop = self._stack.enter_context(stop_request())
        self._writer = self._stack.enter_context(tensorboard_writer(self.run, self.first_step))
        self._progress = self._stack.enter_context(progress_bar("{task.fields[note]}"))
        self._task = self._progress.add_task("steps", total=self.total_steps, completed=self.first_step, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def seconds(self) -> float:
        """Since the recorder was created."""
        return time.monotonic() - self._started_s

    def step(self, step: int, *, loss: float, num_images: int, scalars: Mapping[str, float]) -> None:
        """Moves the progress line; logs `scalars` every tenth step and after the last one."""
        self._num_images += num_images
        note = f"loss {loss:.4f}  {self.evaluation.summary if self.evaluation else ''}".strip()
        speed = f"{self._images_per_second:.0f} images/s"
        now_s = time.monotonic()
        self._time_left.add(step, now_s)
        self._progress.update(self._task, completed=step, note=f"{note}  {speed}")
        self._estimate(step, now_s)
        # A terminal has the progress line; a log file gets a line every 30 seconds.
        if not self._progress.console.is_terminal and now_s - self._logged_s > LOG_EVERY_SECONDS:
            self._logged_s = now_s
            left = duration(self._time_left.seconds(step, now_s))
            log.info("step %d/%d  %s  %s  %s left", step, self.total_steps, note, speed, left)
        if self._is_due(step, SCALARS_EVERY_STEPS):
            self._log_scalars(step, scalars)

    def evaluate(self, step: int, evaluate: Callable[[], EvaluationT]) -> None:
        """Calls `evaluate` every `eval_every` steps and after the last one, and logs what it returns."""
        if self.eval_every and self._is_due(step, self.eval_every):
            self.evaluation = evaluate()
            self._log_scalars(step, self.evaluation.scalars)

    def final_evaluation(self, evaluate: Callable[[], EvaluationT]) -> EvaluationT | None:
        """The evaluation after the last step; None for never.

        It is missing, and computed now, where a run was killed between its last checkpoint and its result.
        """
        if self.eval_every and self.evaluation is None:
            self.evaluation = evaluate()
        return self.evaluation

    def save_and_stop(
        self,
        step: int,
        *,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves a checkpoint every `checkpoint_every` steps and after the last one.

        After Ctrl-C or SIGTERM it saves one at once and raises Interrupted. `state` is added to state.json.
        """
        signum = self._stop.signum
        if signum is not None or (self.checkpoint_every and self._is_due(step, self.checkpoint_every)):
            save_checkpoint(
                self.run,
                step=step,
                model=model,
                optimizers=optimizers,
                keep=self.keep_checkpoints,
                state={"loss_scale": scaler.state_dict(), **(state or {})},
            )
        if signum is not None:
            folder = shlex.quote(str(self.run.path))
            kept = f"step {step} of {self.total_steps} kept in {self.run.path}"
            raise Interrupted(signum, f"{kept}, continue with `edgeembed {self.command} --resume {folder}`")

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.total_steps

    @property
    def _images_per_second(self) -> float:
        return self._num_images / max(1e-9, self.seconds)

    def _estimate(self, step: int, now_s: float) -> None:
        """Logs once, within seconds of the first step, how long the run will take; earlier where that step was long."""
        if self._first_step_done_s is None:
            self._first_step_done_s = now_s
        elif (
            not self._estimate_given
            and step < self.total_steps
            and now_s - self._first_step_done_s > FORECAST_AFTER_SECONDS
        ):
            self._estimate_given = True
            # Without the first step, which includes work that is done only once.
            seconds_per_step = (now_s - self._first_step_done_s) / (step - self.first_step - 1)
            self._log_estimate(step, now_s, f"{seconds_per_step:.2f} s per step so far")
        if step == self.first_step + 1 < self.total_steps and self.seconds > LONG_STEP_SECONDS:
            self._log_estimate(step, now_s, "estimated from the first step")

    def _log_estimate(self, step: int, now_s: float, basis: str) -> None:
        left = duration(self._time_left.seconds(step, now_s))
        log.info("about %s left without evaluations (%s)%s", left, basis, self._time_left_remark)

    def _log_scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Writes values to metrics.jsonl and TensorBoard, without None and those that are not finite.

        None is a score that could not be computed; the gradient norm of a step skipped in fp16 is not finite.
        """
        finite = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        self.run.log({"step": step, **finite, "images_per_second": round(self._images_per_second, 1)})
        try:
            for name, value in finite.items():
                self._writer.add_scalar(name, value, step)
        except OSError as failure:
            raise write_failure(failure, self.run.path / "tensorboard") from failure


@contextlib.contextmanager
def tensorboard_writer(run: RunFolder, first_step: int) -> Iterator[SummaryWriter]:
    """A TensorBoard writer for the steps after `first_step`; the end of the block closes it."""
    from torch.utils.tensorboard import SummaryWriter  # takes a second to import: not before a run really starts

    # `purge_step` hides what a killed run logged after its last checkpoint.
    writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=first_step)
    try:
        yield writer
    except BaseException:
        with contextlib.suppress(OSError):  # the exception on its way is the one to report
            writer.close()
        raise
    try:
        writer.close()
    except OSError as failure:
        raise write_failure(failure, run.path / "tensorboard") from failure
