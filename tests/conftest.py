"""Fixtures that many tests share: the command line, a small data set, a briefly trained teacher and student."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# Imported first: edgeembed turns off the usage data of ONNX Runtime, before any test imports that.
from edgeembed.device import runtimes
from edgeembed.device.runtimes import fastest_cache

TINY = [
    "backbone.name=test_resnet",
    "backbone.weights=none",
    "image.size_px=32",
    "train.batch_size=8",
    "train.epochs=2",
    "train.workers=0",
    "train.checkpoint_every_steps=2",
]
TINY_STUDENT = [item for item in TINY if not item.startswith("backbone.")] + [
    "student.name=test_resnet",
    "student.weights=none",
]


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    stdout: str
    stderr: str


def as_options(overrides: list[str]) -> list[str]:
    """Recipe keys as command-line arguments: `--set KEY=VALUE` for each."""
    return [word for item in overrides for word in ("--set", item)]


@pytest.fixture(autouse=True, scope="session")
def default_sigint_handler() -> Iterator[None]:
    """Restores Python's handler of Ctrl-C: shells ignore SIGINT in background processes, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="session")
def separate_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Session fixtures use a fastest-file cache of their own, not the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastest_cache, "cache_folder", lambda: folder)
        yield


@pytest.fixture(autouse=True)
def empty_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts with an empty fastest-file cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(fastest_cache, "cache_folder", lambda: folder)


def pretend_cpu_flags(monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    """Makes edgeembed see an x86 CPU with these instruction sets."""
    facts = dataclasses.replace(
        runtimes.this_machine(), architecture="x86_64", system="Linux-6.1", cpu_flags=tuple(flags)
    )
    for module in (runtimes, fastest_cache):
        monkeypatch.setattr(module, "this_machine", lambda: facts)


@pytest.fixture
def without_int8_dot_products(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cpu_flags(monkeypatch, ["avx2"])


@pytest.fixture
def with_int8_dot_products(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cpu_flags(monkeypatch, ["avx2", "avx512_vnni"])


@pytest.fixture
def edgeembed(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the command line in this process."""
    from edgeembed.cli import run

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        try:
            code = run([str(argument) for argument in arguments])
        except SystemExit as stopped:  # SIGTERM, sent to the test process
            pytest.exit(f"stopped with {stopped.code}", returncode=128 + signal.SIGTERM)
        if code == 128 + signal.SIGTERM:  # the same, after a training run saved a checkpoint
            pytest.exit("stopped by SIGTERM", returncode=code)
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 20 rendered objects, 6 images of each, 64 px."""
    from edgeembed.data.default_set import write_default_set

    folder = tmp_path_factory.mktemp("tiny")
    write_default_set(folder, num_instances=20, num_views=6, size_px=64, seed=0)
    return folder / "manifest.parquet"


@pytest.fixture(scope="session")
def tiny_teacher(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished teacher run, trained for 2 epochs."""
    from edgeembed.cli import run

    out = tmp_path_factory.mktemp("teacher") / "run"
    command = ["teacher-train", "--data", str(tiny_data), "--recipe", "quickstart", "--out", str(out)]
    assert run([*command, *as_options(TINY)]) == 0
    return out


@pytest.fixture(scope="session")
def tiny_student(tiny_data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished student run, trained for 2 epochs."""
    from edgeembed.cli import run

    out = tmp_path_factory.mktemp("student") / "run"
    command = ["distill", "--data", str(tiny_data), "--teacher", str(tiny_teacher), "--recipe", "quickstart"]
    assert run([*command, "--out", str(out), *as_options(TINY_STUDENT)]) == 0
    return out


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public image data sets; tests that need it are skipped with a message where it is missing."""
    folder = Path(os.environ.get("EDGEEMBED_DATA", "../shared/data"))
    if not (folder / "grocery").is_dir():
        pytest.skip(f"REAL DATA MISSING: no {folder}/grocery; set EDGEEMBED_DATA")
    return folder
