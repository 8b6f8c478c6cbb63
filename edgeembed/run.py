"""Run folders without torch: whole-or-absent files, metrics log, what machine ran, which run is the latest."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from edgeembed.errors import UserError
from edgeembed.files import check_output_folder, whole_file, write_failure
from edgeembed.locks import check_unlocked, locked

PACKAGES = (
    "edgeembed", "numpy", "onnx", "onnxruntime", "onnxscript", "onnxsim", "open_clip_torch", "openvino", "pillow",
    "pyarrow", "safetensors", "tensorrt", "timm", "torch", "torchvision",
)  # fmt: skip
ANOTHER_FOLDER = "choose another --out"

KINDS_OF_FOLDER = {
    "bundle.json": "a bundle",
    "source.json": "imported embeddings",
    "targets.json": "a store of teacher embeddings",
    "config.yaml": "an unfinished run",
}
"""What a folder is that holds a file of this name, the first that applies."""


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


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file that appears whole or not at all. Raises WriteFailed where the disk is full."""
    encoded = content.encode() if isinstance(content, str) else content
    with whole_file(path, needed=len(encoded)) as file:
        file.write(encoded)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def cache_folder() -> Path:
    """The user's folder for what can be computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeembed"


def sync_folder(path: Path) -> None:
    """Makes renames inside a folder durable; Windows opens no folders, and does not need it."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def package_versions() -> dict[str, str]:
    """Versions of what is installed of our dependencies, without importing any."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def machine() -> dict[str, Any]:
    """CPU model, cores, instruction sets that matter for inference, memory and system."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags |= set(value.split())
    wanted = (
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx_vnni",
        "avx512_bf16",
        "amx_int8",
        "asimd",
        "asimddp",
        "i8mm",
        "bf16",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = None
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf, and names differ elsewhere
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "architecture": platform.machine(),
        "cores": cores,
        "cpu_flags": [flag for flag in wanted if flag in flags],
        "memory_bytes": memory,
        "system": platform.platform(),
    }


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Where a training run keeps its recipe, log, checkpoints and result."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def inputs(self) -> Path:
        """What was trained on and, for a student, with which teacher."""
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
        return self.model_json.is_file()

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(path for path in self.path.glob("checkpoints/step-*/") if path.name[5:].isdigit())

    def last_step(self) -> int:
        """How many steps the newest checkpoint holds; 0 where there is none."""
        checkpoints = self.checkpoints()
        return int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0

    @property
    def started(self) -> bool:
        """Whether a run was begun here, or a finished one put here."""
        return self.config.exists() or self.finished

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Within the block no other process trains here. Raises UserError that names the process which does."""
        check_output_folder(self.path)
        with locked(self.path, instead=ANOTHER_FOLDER):
            yield

    def check_unlocked(self) -> None:
        """Raises UserError where another process trains here now: a quick answer before long work."""
        check_unlocked(self.path, instead=ANOTHER_FOLDER)

    def check_start(self, *, resume: bool) -> None:
        """Raises UserError where a run cannot be begun or resumed here, whatever its recipe; quick, before long work.

        A run without checkpoints, as a failed start leaves it, starts again in its folder.
        """
        check_output_folder(self.path)
        if self.config.is_dir():
            raise UserError(f"{self.config}: is a folder, expected the file of a run: choose another --out")
        if resume and not self.config.exists():
            what = "holds no run to resume (no config.yaml)" if self.path.exists() else "no such run to resume"
            raise UserError(f"{self.path}: {what}: correct the folder, or leave --resume out to begin a run")
        if not resume and self.finished:
            raise UserError(f"{self.path}: holds a finished run already: choose another --out")
        if not resume and self.checkpoints():
            raise UserError(f"{self.path}: holds a run already: add --resume to continue it, or choose another --out")

    def begin(self, config_yaml: str, inputs: Mapping[str, Any]) -> None:
        """Writes what a run, new or resumed, is made of, and removes what a killed process left unfinished."""
        for stale in self.path.glob("checkpoints/.*"):
            shutil.rmtree(stale, ignore_errors=True)
        for stale in self.path.glob(".*.tmp"):
            stale.unlink(missing_ok=True)
        write_atomically(self.config, config_yaml)
        write_json(self.inputs, inputs)
        write_json(self.path / "environment.json", environment())

    def forget_metrics_after(self, step: int) -> None:
        """Drops logged lines that a resumed run will write again, and a line cut off by a kill."""
        if not self.metrics.exists():
            return
        kept = []
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


def environment() -> dict[str, Any]:
    return {"machine": machine(), "versions": package_versions(), "command": sys.argv}


def what_is(path: Path) -> str:
    """What a path holds, for an error where something else was expected."""
    if not path.is_dir():
        return "a file" if path.exists() else "no such file or folder"
    if (path / "model.json").is_file():
        return f"a finished {read_json(path / 'model.json').get('role')} run"
    for name, what in KINDS_OF_FOLDER.items():
        if (path / name).is_file():
            return what
    return "a folder without a run or a bundle"


def require_run(path: Path, *, role: str | None = None) -> None:
    """Raises UserError for a path that is not a finished run, or one of another role ("teacher" or "student").

    Needs no torch: a command can call it before it imports what takes seconds.
    """
    what = what_is(path)
    if not RunFolder(path=path).finished:
        raise UserError(f"{path}: holds no finished run ({what}): name a run folder, or finish it with --resume")
    facts = read_json(RunFolder(path=path).model_json)
    if role is not None and facts.get("role") != role:
        origin = (facts.get("teacher") or {}).get("path")
        remedy = f"it was distilled from {origin}" if origin else f"name a {role} run"
        raise UserError(f"{path}: is {what}, expected a {role} run: {remedy}")


def require_teacher(path: Path) -> None:
    """Raises UserError for a path that no student can learn from: neither a teacher run nor imported embeddings."""
    if not (path / "targets.json").is_file():
        require_run(path, role="teacher")


def latest_run(role: str, root: Path = Path("runs")) -> Path:
    """The most recently finished run of a role ("teacher" or "student") below a folder."""
    finished = [path for path in root.glob("**/model.json") if read_json(path).get("role") == role]
    if not finished:
        command = "teacher-train" if role == "teacher" else "distill"
        raise UserError(f"no finished {role} run under {root}/: run `edgeembed {command}` first, or name its folder")
    return max(finished, key=lambda path: path.stat().st_mtime).parent
