"""Run folders, which hold the recipe, log, checkpoints and result of a training run; needs no torch."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeembed.errors import UserError
from edgeembed.files import check_output_folder, write_atomically, write_failure, write_json
from edgeembed.locks import check_unlocked, locked
from edgeembed.machine import environment
from edgeembed.model_json import read_origin

CHOOSE_ANOTHER_OUT = "choose another --out"

KINDS_OF_FOLDER = {
    "bundle.json": "a bundle",
    "source.json": "imported embeddings",
    "targets.json": "a store of teacher embeddings",
    "config.yaml": "an unfinished run",
}
"""What a folder is, by a file that it holds; the first that matches."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Paths inside the folder of a training run, and the checks before a run starts or resumes there."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def inputs(self) -> Path:
        """The file that names the training data and, for a student, the teacher."""
        return self.path / "inputs.json"

    @property
    def model_json(self) -> Path:
        return self.path / "model.json"

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def finished(self) -> bool:
        """Whether the run ended and its model was written."""
        return self.model_json.is_file()

    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first; unfinished ones have hidden names."""
        # The trailing slash matches folders only. Numbers are zero-padded, so that sorting by name sorts by step.
        return sorted(path for path in self.path.glob("checkpoints/step-*/") if path.name[5:].isdigit())

    def last_step(self) -> int:
        """The training step of the newest checkpoint; 0 where there is none."""
        checkpoints = self.checkpoints()
        return int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0

    @property
    def started(self) -> bool:
        """Whether the folder holds a run, finished or not."""
        return self.config.exists() or self.finished

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock of the folder within the block. Raises UserError that names the process that holds it."""
        check_output_folder(self.path)
        # Checked before locking, so that a folder that cannot be written gives the clearer error.
        with locked(self.path, instead=CHOOSE_ANOTHER_OUT):
            yield

    def check_unlocked(self) -> None:
        """Raises UserError where another process trains in this folder now: a quick check before long work."""
        check_unlocked(self.path, instead=CHOOSE_ANOTHER_OUT)

    def check_start(self, *, resume: bool) -> None:
        """Raises UserError where a run cannot start, or resume, in this folder: a quick check before long work.

        A run that has no checkpoint yet may be started again in its folder.
        """
        check_output_folder(self.path)
        if self.config.is_dir():
            raise UserError(f"{self.config}: is a folder, expected the file of a run: choose another --out")
        # Only a run that was begun has a recipe to resume with.
        if resume and not self.config.exists():
            what = "holds no run to resume (no config.yaml)" if self.path.exists() else "no such run to resume"
            raise UserError(f"{self.path}: {what}: correct the folder, or leave --resume out to begin a run")
        if not resume and self.finished:
            raise UserError(f"{self.path}: holds a finished run already: choose another --out")
        if not resume and self.checkpoints():
            raise UserError(f"{self.path}: holds a run already: add --resume to continue it, or choose another --out")

    def begin(self, config_yaml: str, inputs: Mapping[str, Any]) -> None:
        """Writes recipe, inputs and environment of a run; removes what a killed process left unfinished."""
        # Hidden names are those that `whole_folder` and `whole_file` write under.
        for stale in (*self.path.glob("checkpoints/.*"), *self.path.glob("features/.*")):
            shutil.rmtree(stale, ignore_errors=True)
        for stale in self.path.glob(".*.tmp"):
            stale.unlink(missing_ok=True)
        write_atomically(self.config, config_yaml)
        write_json(self.inputs, inputs)
        write_json(self.path / "environment.json", environment())

    def drop_metrics_after(self, step: int) -> None:
        """Removes lines of metrics.jsonl that a resumed run writes again, and a line that a kill left incomplete."""
        if not self.metrics.exists():
            return
        kept = []
        # A resumed run starts at its last checkpoint and logs the steps after it a second time.
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        write_atomically(self.metrics, "".join(kept))

    def log(self, values: Mapping[str, float | int | str]) -> None:
        """Appends one line to metrics.jsonl."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise write_failure(error, self.metrics) from error


def describe_folder(path: Path) -> str:
    """Describes what a path holds, for the error message where something else was expected."""
    if not path.is_dir():
        return "a file" if path.exists() else "no such file or folder"
    # A finished run also holds config.yaml, by which KINDS_OF_FOLDER recognises an unfinished one.
    if (path / "model.json").is_file():
        return f"a finished {read_origin(path / 'model.json').role} run"
    for name, what in KINDS_OF_FOLDER.items():
        if (path / name).is_file():
            return what
    return "a folder without a run or a bundle"


def require_run(path: Path, *, role: str | None = None) -> None:
    """Raises UserError for a path that is not a finished run, or not one of `role` ("teacher" or "student").

    It needs no torch, so that a command can call it before an import that takes seconds.
    """
    what = describe_folder(path)
    if not RunFolder(path=path).finished:
        raise UserError(f"{path}: holds no finished run ({what}): name a run folder, or finish it with --resume")
    origin = read_origin(RunFolder(path=path).model_json)
    if role is not None and origin.role != role:
        teacher_path = origin.teacher and origin.teacher.path
        remedy = f"it was distilled from {teacher_path}" if teacher_path else f"name a {role} run"
        raise UserError(f"{path}: is {what}, expected a {role} run: {remedy}")


def require_teacher(path: Path) -> None:
    """Raises UserError for a path that is no teacher: neither a teacher run nor a store of teacher embeddings."""
    # Imported embeddings are stored in the same form as teacher embeddings that edgeembed computed.
    if not (path / "targets.json").is_file():
        require_run(path, role="teacher")


def latest_run(role: str, root: Path = Path("runs")) -> Path:
    """The most recently finished run of a role ("teacher" or "student") below a folder; UserError where none is."""
    finished = [path for path in root.glob("**/model.json") if read_origin(path).role == role]
    if not finished:
        command = "teacher-train" if role == "teacher" else "distill"
        raise UserError(f"no finished {role} run under {root}/: run `edgeembed {command}` first, or name its folder")
    # model.json is the last file that a run writes, so that its time is when the run finished.
    return max(finished, key=lambda path: path.stat().st_mtime).parent
