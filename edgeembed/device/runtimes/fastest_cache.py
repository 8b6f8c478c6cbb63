"""Finds the fastest file and runtime of a bundle whose embeddings are right on this machine, and caches the choice.

What is faster cannot be told from a CPU's name: int8 against fp32 depends on its dot products, one runtime against the
other on the network. Nor is what passed the exporter's gate right everywhere: int8 products saturate on some CPUs. So a
pair becomes the default only after its embeddings were compared with the fp32 file's on this machine.
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
from edgeembed.device.bundle import ONNX, PLAN, BundleFile, BundleManifest, fp32_file
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
WARMUP_SECONDS, TURN_SECONDS = 0.1, 0.3  # of each candidate in each round
MOST_REMEMBERED = 100
REFERENCE_RUNTIME = "onnxruntime"
"""The runtime in which the fp32 file gives the embeddings that all others are compared with."""
LEAST_COSINE_P1 = 0.99
"""The 1st percentile over images of the cosine to the fp32 file's embeddings that a default must reach. int8 of a
MobileNetV4-small keeps .998, and .93 where products saturate (ONNX Runtime, Grocery Store)."""
LEAST_IMAGES = 16
"""With fewer, the 1st percentile says nothing."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A file of a bundle in one runtime."""

    file: BundleFile
    runtime: str


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How close a pair's embeddings are to those of the bundle's fp32 file in ONNX Runtime, on this machine.

    `cosine_p1`: 1st percentile over `images` images; None where there is no fp32 file to compare with, and where the
    embeddings are broken, for the reason in `defect`. `relative_error_p50`: as in `bundle.Parity`.
    """

    cosine_p1: float | None
    images: int
    relative_error_p50: float | None = None
    defect: str | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A file (by its path inside the bundle) in a runtime: median time of one image in milliseconds, and agreement."""

    path: str
    runtime: str
    provider: str
    p50_ms: float
    agreement: Agreement


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


def refusal(file: BundleFile, agreement: Agreement) -> str | None:
    """Why a file must not become this machine's default in the runtime that was measured; None where it may.

    The one rule, whoever measured: what `edgeembed bench` recommends, and what it or `edgeembed doctor` remembers.
    """
    if file.needs_int8_dot_products and not has_int8_dot_product():
        return "its 8-bit weights need int8 dot products, which this CPU is not known to have: export again with 7 bits"
    if agreement.defect is not None:
        return agreement.defect
    if agreement.cosine_p1 is None:
        return "there are no embeddings of an fp32 file in ONNX Runtime to compare with"
    if agreement.images < LEAST_IMAGES:
        return f"compared on {agreement.images} images only, expected at least {LEAST_IMAGES}"
    if not agreement.cosine_p1 >= LEAST_COSINE_P1:  # NaN is not
        return f"cosine p1 to the fp32 file's embeddings is {agreement.cosine_p1:.4f}, below {LEAST_COSINE_P1:g}"
    return error_beside_spread(agreement.relative_error_p50)


def agree(reference_ND: FloatArray | None, embedding_ND: FloatArray) -> Agreement:
    """Compares embeddings of the same images, where there are others to compare with."""
    if reference_ND is None:
        return Agreement(cosine_p1=None, images=len(embedding_ND))
    if defect := find_defect(embedding_ND, reference_ND.shape):
        return Agreement(cosine_p1=None, images=len(reference_ND), defect=defect)
    found = measure_agreement(reference_ND, embedding_ND)
    return Agreement(cosine_p1=found.cosine_p1, images=len(reference_ND), relative_error_p50=found.relative_error_p50)


def measure_pairs(
    folder: Path, manifest: BundleManifest, image_NHWC: UInt8Array, *, threads: int | None = None
) -> list[Measured]:
    """Compares every verified pair's embeddings of the images with the fp32 file's, and times one image in it.

    On all cores unless `threads` says otherwise; a few seconds for each pair. The pairs take turns, so that whatever
    else the machine does meets all of them alike: the median over rounds of the median of a turn. The caller has
    verified the files. Raises CheckFailed where none runs.
    """
    opened: list[tuple[Pair, Session, FloatArray]] = []
    for pair in verified_pairs(manifest):
        try:
            session = open_file_of(folder, pair, threads=threads)
            opened.append((pair, session, embed_each(session, image_NHWC)))
        except (ImportError, UserError, CheckFailed) as error:
            log.warning("not measured: %s in %s: %s", pair.file.path, pair.runtime, error)
    if not opened:
        raise CheckFailed(f"{folder}: no file can be opened here in a runtime that it was verified in")
    embedded = {(pair.file.path, pair.runtime): embedding_ND for pair, _, embedding_ND in opened}
    fp32 = fp32_file(manifest)
    reference_ND = None if fp32 is None else embedded.get((fp32.path, REFERENCE_RUNTIME))
    turns_ms = [[turn_ms(session, image_NHWC[:1]) for _, session, _ in opened] for _ in range(ROUNDS)]
    return [
        Measured(
            path=pair.file.path,
            runtime=pair.runtime,
            provider=session.provider,
            p50_ms=float(p50_ms),
            agreement=agree(reference_ND, embedding_ND),
        )
        for (pair, session, embedding_ND), p50_ms in zip(opened, np.median(turns_ms, axis=0), strict=True)
    ]


def embed_each(session: Session, image_NHWC: UInt8Array) -> FloatArray:
    """(N, D), one image at a time, as on a device."""
    return np.concatenate([session.run(image_NHWC[i : i + 1]) for i in range(len(image_NHWC))])


def open_file_of(folder: Path, pair: Pair, *, threads: int | None = None, provider: str | None = None) -> Session:
    """A session of a verified file. Raises UserError for an engine that was built for another GPU or TensorRT."""
    if pair.file.path.endswith(PLAN):
        import_runtime(pair.runtime).require_built_here(pair.file)
    return open_session(folder / pair.file.path, runtime=pair.runtime, threads=threads, provider=provider)


def turn_ms(session: Session, image_NHWC: UInt8Array) -> float:
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


def fastest_right(manifest: BundleManifest, measured: Sequence[Measured]) -> Measured | None:
    """The fastest measured pair that `refusal` does not refuse: what is recommended and what is remembered.

    None where all are refused: the default is then what an `Embedder` opens on a machine where nothing was measured.
    """
    files = {file.path: file for file in manifest.files}
    allowed = [one for one in measured if refusal(files[one.path], one.agreement) is None]
    return min(allowed, key=lambda one: one.p50_ms, default=None)


def remember(
    folder: Path, manifest: BundleManifest, measured: Sequence[Measured], *, threads: int | None = None
) -> Measured | None:
    """Keeps `fastest_right` for later starts on this machine, and returns it.

    None where all are refused: nothing is remembered any more, but what was is kept where these images cannot tell.
    Where it cannot be written, a warning says so.
    """
    if all(
        (one.agreement.cosine_p1 is None and one.agreement.defect is None) or one.agreement.images < LEAST_IMAGES
        for one in measured
    ):
        return None
    fastest = fastest_right(manifest, measured)
    known = read_cache()
    known.pop(key := cache_key(folder, threads), None)  # the newest comes last
    if fastest is not None:
        known[key] = {
            "bundle": folder.resolve().name,
            "fastest": {"path": fastest.path, "runtime": fastest.runtime, **asdict(fastest.agreement)},
            "measured": [asdict(one) for one in measured],
        }
    try:
        write_json(cache_file(), dict(list(known.items())[-MOST_REMEMBERED:]))
    except OSError as error:
        log.warning("%s: what is fastest here cannot be remembered (%s)", cache_file(), error)
    return fastest


def recall(folder: Path, manifest: BundleManifest, *, threads: int | None = None) -> Pair | None:
    """What was measured as the fastest of this very bundle on this machine, if it was, and the rule still allows it.

    What an earlier version remembered without comparing embeddings, or without the spread that an error is held
    against, does not count.
    """
    known = read_cache()
    if not known:
        return None
    match known.get(cache_key(folder, threads)):
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
            pairs = [pair for pair in verified_pairs(manifest) if refusal(pair.file, agreement) is None]
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
