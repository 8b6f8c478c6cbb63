"""Which verified file and runtime of a bundle are fastest on this machine: measured once, remembered, found at start.

What is faster cannot be told from a CPU's name: int8 against fp32 depends on its dot products, one runtime against the
other on the network. Only pairs that passed the exporter's gate take part, so that speed never costs quality.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edgeembed.bundle import ONNX, PLAN, BundleFile, BundleManifest, sha256_of
from edgeembed.errors import CheckFailed, UserError
from edgeembed.run import cache_folder, read_json, write_json
from edgeembed.runtimes import Session, available_cores, import_runtime, is_installed, open_session, this_machine

log = logging.getLogger(__name__)

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")
ROUNDS = 5
WARMUP_SECONDS, TURN_SECONDS = 0.1, 0.3  # of each candidate in each round
MOST_REMEMBERED = 100


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A file of a bundle in one runtime."""

    file: BundleFile
    runtime: str


@dataclass(frozen=True, kw_only=True)
class Timed:
    """How long one image takes: the file's path inside its bundle, and the median in milliseconds."""

    path: str
    runtime: str
    provider: str
    p50_ms: float


def verified_pairs(manifest: BundleManifest) -> list[Pair]:
    """Each ONNX file and engine in its own runtime and in those whose check it passed, where they are installed.

    A file that its gate refused and that was written all the same is in none: it is used where it is asked for.
    """
    return [
        Pair(file=file, runtime=runtime)
        for file in manifest.files
        if file.path.endswith((ONNX, PLAN)) and not file.accepted_worse
        for runtime in (file.runtime, *(name for name, check in file.runtimes.items() if check.passed))
        if is_installed(runtime)
    ]


def time_pairs(folder: Path, manifest: BundleManifest, *, threads: int | None = None) -> list[Timed]:
    """Times one image in every verified pair, on all cores unless `threads` says otherwise; a few seconds for each.

    The pairs take turns, so that whatever else the machine does meets all of them alike: the median over rounds of the
    median of a turn. The caller has verified the files. Raises CheckFailed where none can be opened.
    """
    sessions: list[tuple[Pair, Session]] = []
    for pair in verified_pairs(manifest):
        try:
            sessions.append((pair, open_file_of(folder, pair, threads=threads)))
        except (ImportError, UserError) as error:
            log.warning("not measured: %s in %s: %s", pair.file.path, pair.runtime, error)
    if not sessions:
        raise CheckFailed(f"{folder}: no file can be opened here in a runtime that it was verified in")
    size = (manifest.input.height, manifest.input.width)
    image_NHWC = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    turns_ms = [[turn_ms(session, image_NHWC) for _, session in sessions] for _ in range(ROUNDS)]
    return [
        Timed(path=pair.file.path, runtime=pair.runtime, provider=session.provider, p50_ms=float(p50_ms))
        for (pair, session), p50_ms in zip(sessions, np.median(turns_ms, axis=0), strict=True)
    ]


def open_file_of(folder: Path, pair: Pair, *, threads: int | None = None, provider: str | None = None) -> Session:
    """A session of a verified file. Raises UserError for an engine that was built for another GPU or TensorRT."""
    if pair.file.path.endswith(PLAN):
        import_runtime(pair.runtime).require_built_here(pair.file)
    return open_session(folder / pair.file.path, runtime=pair.runtime, threads=threads, provider=provider)


def turn_ms(session: Session, image_NHWC: np.ndarray[Any, np.dtype[np.uint8]]) -> float:
    """The median of one turn in milliseconds, after a warm-up in which the threads of others come to rest."""
    warm = time.perf_counter() + WARMUP_SECONDS
    session.run(image_NHWC)
    while time.perf_counter() < warm:
        session.run(image_NHWC)
    samples_s: list[float] = []
    ends = time.perf_counter() + TURN_SECONDS
    while not samples_s or time.perf_counter() < ends:
        started = time.perf_counter()
        session.run(image_NHWC)
        samples_s.append(time.perf_counter() - started)
    return 1e3 * float(np.median(samples_s))


def remember(folder: Path, timed: Sequence[Timed], *, threads: int | None = None) -> Timed:
    """Keeps the fastest for later starts on this machine and returns it; where that fails, a warning says so."""
    fastest = min(timed, key=lambda one: one.p50_ms)
    known = read_cache()
    known.pop(key := cache_key(folder, threads), None)  # the newest comes last
    known[key] = {
        "bundle": folder.resolve().name,
        "fastest": {"path": fastest.path, "runtime": fastest.runtime},
        "timed": [asdict(one) for one in timed],
    }
    try:
        write_json(cache_file(), dict(list(known.items())[-MOST_REMEMBERED:]))
    except OSError as error:
        log.warning("%s: what is fastest here cannot be remembered (%s)", cache_file(), error)
    return fastest


def recall(folder: Path, manifest: BundleManifest, *, threads: int | None = None) -> Pair | None:
    """What was measured as the fastest of this very bundle on this machine, if it was, and is still verified."""
    known = read_cache()
    if not known:
        return None
    match known.get(cache_key(folder, threads)):
        case {"fastest": {"path": path, "runtime": runtime}}:
            pairs = verified_pairs(manifest)
            return next((pair for pair in pairs if (pair.file.path, pair.runtime) == (path, runtime)), None)
    return None


def cache_file() -> Path:
    return cache_folder() / "fastest.json"


def read_cache() -> dict[str, Any]:
    """What is remembered, by key; nothing where the file is missing, damaged or not ours to read."""
    try:
        return read_json(cache_file())
    except (UserError, OSError) as error:
        log.debug("nothing remembered: %s", error)
        return {}


def cache_key(folder: Path, threads: int | None) -> str:
    """Changes with everything that could make another choice faster: bundle, processor, threads, runtimes."""
    machine = this_machine()
    facts: Mapping[str, Any] = {
        "bundle": sha256_of(folder / "bundle.json"),
        **{name: machine[name] for name in ("cpu", "architecture", "cores", "cpu_flags")},
        "threads": threads or available_cores(),
        "versions": runtime_versions(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def runtime_versions() -> dict[str, str]:
    versions = {}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
