"""Finds the fastest file and runtime of a bundle whose embeddings are right on this machine, and caches the choice.

The name of a CPU does not tell which is fastest: int8 against fp32 depends on the CPU's int8 dot products, and one
runtime against another on the network. Nor is a file that passed the export gate right on every machine, because int8
products saturate on some CPUs. So a file in a runtime becomes the default of a machine only after its embeddings were
compared there with those of the fp32 file.
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

from edgeembed.agreement import find_defect, measure_agreement
from edgeembed.arrays import FloatArray, UInt8Array
from edgeembed.device.bundle import fp32_file
from edgeembed.device.bundle_schema import ONNX, PLAN, BundleFile, BundleManifest
from edgeembed.device.runtimes import (
    Session,
    available_cores,
    has_int8_dot_product,
    import_runtime,
    is_installed,
    open_session,
    this_machine,
)
from edgeembed.errors import CheckFailed, UserError
from edgeembed.files import cache_folder, read_json, sha256_of, write_json
from edgeembed.spread import error_beside_spread

log = logging.getLogger(__name__)

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")
ROUNDS = 5
WARMUP_SECONDS, TIMED_SECONDS = 0.1, 0.3  # for each file and runtime in each round
MAX_ENTRIES = 100
REFERENCE_RUNTIME = "onnxruntime"
"""The runtime of the fp32 file that gives the reference embeddings."""
MIN_COSINE_P1 = 0.99
"""What the 1st percentile over images of the cosine to the fp32 file's embeddings must reach. An int8
MobileNetV4-small was measured at .998, and at .93 on a CPU where products saturate (ONNX Runtime, Grocery Store)."""
MIN_IMAGES = 16
"""With fewer images a 1st percentile means nothing."""


@dataclass(frozen=True, kw_only=True)
class RunnableFile:
    """A file of a bundle, and the runtime that runs it."""

    file: BundleFile
    runtime: str


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How close embeddings are to those of the bundle's fp32 file in ONNX Runtime on this machine.

    `cosine_p1`: 1st percentile over `images` images; None where there is no fp32 file to compare with, and where the
    embeddings are broken, for the reason in `defect`. `relative_error_p50`: as in `bundle_schema.Parity`.
    """

    cosine_p1: float | None
    images: int
    relative_error_p50: float | None = None
    defect: str | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured of a file in a runtime; `path` is relative to the bundle, `p50_ms` the median for one image."""

    path: str
    runtime: str
    provider: str
    p50_ms: float
    agreement: Agreement


def verified_runnable_files(manifest: BundleManifest) -> list[RunnableFile]:
    """Every ONNX file and engine, with its own runtime and each other one whose gate it passed, if installed.

    A file that failed its gate (`accepted_worse`) is left out: it is used only where its precision is given.
    """
    return [
        RunnableFile(file=file, runtime=runtime)
        for file in manifest.files
        if file.path.endswith((ONNX, PLAN)) and not file.accepted_worse
        for runtime in (file.runtime, *(name for name, check in file.runtimes.items() if check.passed))
        if is_installed(runtime)
    ]


def rejection_reason(file: BundleFile, agreement: Agreement) -> str | None:
    """Why a file must not become this machine's default in the runtime that was measured; None where it may.

    `edgeembed bench` recommends and `edgeembed doctor` stores by this one rule.
    """
    if file.needs_int8_dot_products and not has_int8_dot_product():
        return "its 8-bit weights need int8 dot products, which this CPU is not known to have: export again with 7 bits"
    if agreement.defect is not None:
        return agreement.defect
    if agreement.cosine_p1 is None:
        return "there are no embeddings of an fp32 file in ONNX Runtime to compare with"
    if agreement.images < MIN_IMAGES:
        return f"compared on {agreement.images} images only, expected at least {MIN_IMAGES}"
    if not agreement.cosine_p1 >= MIN_COSINE_P1:  # so that NaN is rejected
        return f"cosine p1 to the fp32 file's embeddings is {agreement.cosine_p1:.4f}, below {MIN_COSINE_P1:g}"
    return error_beside_spread(agreement.relative_error_p50)


def agree(reference_ND: FloatArray | None, embedding_ND: FloatArray) -> Agreement:
    """Compares embeddings of the same images, where there are others to compare with."""
    if reference_ND is None:
        return Agreement(cosine_p1=None, images=len(embedding_ND))
    if defect := find_defect(embedding_ND, reference_ND.shape):
        return Agreement(cosine_p1=None, images=len(reference_ND), defect=defect)
    found = measure_agreement(reference_ND, embedding_ND)
    return Agreement(cosine_p1=found.cosine_p1, images=len(reference_ND), relative_error_p50=found.relative_error_p50)


def measure_runnable_files(
    folder: Path, manifest: BundleManifest, image_NHWC: UInt8Array, *, threads: int | None = None
) -> list[Measurement]:
    """Times one image in every verified file and runtime, and compares the embeddings with the fp32 file's.

    It takes a few seconds for each, on all cores unless `threads` is given. They take turns, so that other load on the
    machine slows all of them alike; a latency is the median over rounds of each round's median. The caller has verified
    the files. Raises CheckFailed where none can be opened.
    """
    opened: list[tuple[RunnableFile, Session, FloatArray]] = []
    for runnable in verified_runnable_files(manifest):
        try:
            # A runtime that fails must not keep the others from being measured.
            session = open_runnable_file(folder, runnable, threads=threads)
            opened.append((runnable, session, embed_one_by_one(session, image_NHWC)))
        except (ImportError, UserError, CheckFailed) as error:
            log.warning("not measured: %s in %s: %s", runnable.file.path, runnable.runtime, error)
    if not opened:
        raise CheckFailed(f"{folder}: no file can be opened here in a runtime that it was verified in")
    # Without the fp32 file in ONNX Runtime there is no reference: then every file is rejected.
    embedded = {(runnable.file.path, runnable.runtime): embedding_ND for runnable, _, embedding_ND in opened}
    fp32 = fp32_file(manifest)
    reference_ND = None if fp32 is None else embedded.get((fp32.path, REFERENCE_RUNTIME))
    # Rounds are the outer loop: a slow phase of the machine then costs every file one round, not one file all.
    rounds_ms = [[median_latency_ms(session, image_NHWC[:1]) for _, session, _ in opened] for _ in range(ROUNDS)]
    return [
        Measurement(
            path=runnable.file.path,
            runtime=runnable.runtime,
            provider=session.provider,
            p50_ms=float(p50_ms),
            agreement=agree(reference_ND, embedding_ND),
        )
        for (runnable, session, embedding_ND), p50_ms in zip(opened, np.median(rounds_ms, axis=0), strict=True)
    ]


def embed_one_by_one(session: Session, image_NHWC: UInt8Array) -> FloatArray:
    """Embeddings (N, D), computed one image at a time, as on a device."""
    return np.concatenate([session.run(image_NHWC[i : i + 1]) for i in range(len(image_NHWC))])


def open_runnable_file(
    folder: Path, runnable: RunnableFile, *, threads: int | None = None, provider: str | None = None
) -> Session:
    """Opens a session of a verified file. Raises UserError for an engine that was built for another GPU or TensorRT."""
    # An engine of another GPU fails with a message that few can read, so this is checked first.
    if runnable.file.path.endswith(PLAN):
        import_runtime(runnable.runtime).require_built_here(runnable.file)
    return open_session(folder / runnable.file.path, runtime=runnable.runtime, threads=threads, provider=provider)


def median_latency_ms(session: Session, image_NHWC: UInt8Array) -> float:
    """Median time of one call; the warm-up before lets the threads of the session that ran before come to rest."""
    warmup_end = time.perf_counter() + WARMUP_SECONDS
    session.run(image_NHWC)
    while time.perf_counter() < warmup_end:
        session.run(image_NHWC)
    samples_s: list[float] = []
    end = time.perf_counter() + TIMED_SECONDS
    while not samples_s or time.perf_counter() < end:
        started = time.perf_counter()
        session.run(image_NHWC)
        samples_s.append(time.perf_counter() - started)
    return 1e3 * float(np.median(samples_s))


def fastest_accepted(manifest: BundleManifest, measured: Sequence[Measurement]) -> Measurement | None:
    """The fastest measurement that `rejection_reason` does not reject.

    None where it rejects all: an `Embedder` then opens what it opens on a machine where nothing was measured.
    """
    files = {file.path: file for file in manifest.files}
    allowed = [one for one in measured if rejection_reason(files[one.path], one.agreement) is None]
    return min(allowed, key=lambda one: one.p50_ms, default=None)


def store_fastest(
    folder: Path, manifest: BundleManifest, measured: Sequence[Measurement], *, threads: int | None = None
) -> Measurement | None:
    """Stores `fastest_accepted` in the user's cache, for later starts on this machine, and returns it.

    Where every measurement is rejected, an earlier entry is removed and None returned. Where the images were too few to
    judge, the earlier entry stays. A cache that cannot be written is only warned about.
    """
    # A measurement on too few images proves nothing, not even that the stored choice is wrong.
    if all(
        (one.agreement.cosine_p1 is None and one.agreement.defect is None) or one.agreement.images < MIN_IMAGES
        for one in measured
    ):
        return None
    # Read and written without a lock: two processes at once cost at most one entry, which is measured again.
    fastest = fastest_accepted(manifest, measured)
    entries = read_cache()
    entries.pop(key := cache_key(folder, threads), None)  # the newest comes last
    if fastest is not None:
        entries[key] = {
            "bundle": folder.resolve().name,
            "fastest": {"path": fastest.path, "runtime": fastest.runtime, **asdict(fastest.agreement)},
            "measured": [asdict(one) for one in measured],
        }
    try:
        write_json(cache_file(), dict(list(entries.items())[-MAX_ENTRIES:]))
    except OSError as error:
        log.warning("%s: what is fastest here cannot be stored (%s)", cache_file(), error)
    return fastest


def load_fastest(folder: Path, manifest: BundleManifest, *, threads: int | None = None) -> RunnableFile | None:
    """The stored fastest file and runtime of this bundle on this machine; None where there is none.

    `rejection_reason` is applied again, as its rule may have changed since. Entries of earlier versions, which did not
    compare embeddings or did not hold the error against their spread, are ignored.
    """
    entries = read_cache()
    if not entries:  # the common case on a new machine, without hashing bundle.json
        return None
    match entries.get(cache_key(folder, threads)):
        case {
            "fastest": {
                "path": path,
                "runtime": runtime,
                "cosine_p1": float(cosine_p1),
                "images": int(images),
                "relative_error_p50": float() | None as relative_error,
            }
        }:
            agreement = Agreement(cosine_p1=cosine_p1, images=images, relative_error_p50=relative_error)
            for runnable in verified_runnable_files(manifest):
                if (runnable.file.path, runnable.runtime) == (path, runtime):
                    return None if rejection_reason(runnable.file, agreement) else runnable
    return None


def cache_file() -> Path:
    """Where the choices are stored, one entry for each `cache_key`."""
    return cache_folder() / "fastest.json"


def read_cache() -> dict[str, Any]:
    """The entries by `cache_key`; empty where the file is missing, damaged or not readable."""
    try:
        return read_json(cache_file())
    except (UserError, OSError) as error:
        log.debug("no stored choices: %s", error)
        return {}


def cache_key(folder: Path, threads: int | None) -> str:
    """A hash of everything that decides what is fastest: bundle, processor, number of threads, runtime versions."""
    machine = this_machine()
    facts: Mapping[str, Any] = {
        # bundle.json holds the checksums of all files, so that its own stands for the whole bundle.
        "bundle": sha256_of(folder / "bundle.json"),
        "cpu": machine.cpu,
        "architecture": machine.architecture,
        "cores": machine.cores,
        "cpu_flags": machine.cpu_flags,
        "threads": threads or available_cores(),
        "versions": runtime_versions(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def runtime_versions() -> dict[str, str]:
    """Versions of the installed runtimes, without importing any."""
    versions = {}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
