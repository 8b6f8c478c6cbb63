"""The rows of the report: one file or teacher at one batch size and one number of threads, timed on real images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgeembed.arrays import UInt8Array
from edgeembed.bench.candidates import Candidate
from edgeembed.bench.footprint import probe
from edgeembed.bench.latency import Budget, Latency
from edgeembed.bench.report_schema import ByIndex, Figures, Row
from edgeembed.bench.retrieval import RetrievalQuality
from edgeembed.bench.roofline import Roofline
from edgeembed.device.images import load_pixels
from edgeembed.device.runtimes import open_session

Run = Callable[[UInt8Array], object]


@dataclass(frozen=True, kw_only=True)
class TimingPlan:
    """What all rows share: which files are timed, over which batches and threads, for how long."""

    files: Sequence[str]
    batches: Sequence[int]
    threads: Sequence[int]
    budget: Budget
    file_budget: Budget  # decoding, and everything from file to embedding
    teacher_budget: Budget


@dataclass(frozen=True, kw_only=True)
class Times:
    """Times of calls with `batch` images: the network alone, decoding alone and both together, in milliseconds."""

    batch: int
    latency: Latency
    preprocess_ms: float
    end_to_end_ms: float


@dataclass(frozen=True, kw_only=True)
class LoadedNetwork:
    """A file or teacher, opened with a number of threads."""

    role: str
    name: str
    runtime: str
    provider: str
    precision: str
    threads: int | None
    size_bytes: int
    params: int | None
    macs: int | None
    peak_rss_bytes: int | None
    load_ms: float
    sha256: str


def student_rows(
    candidate: Candidate, quality: RetrievalQuality, plan: TimingPlan, untrained: ByIndex[Figures] | None = None
) -> Iterator[Row]:
    """A bundle's file at every batch size and number of threads, in the candidate's runtime."""
    size = (candidate.bundle.input.height, candidate.bundle.input.width)
    for threads in [None] if candidate.runtime == "tensorrt" else plan.threads:  # an engine runs on the GPU
        # Load time and memory are those of one image, whatever the batch.
        footprint = probe(candidate.path, runtime=candidate.runtime, threads=threads, height=size[0], width=size[1])
        session = open_session(candidate.path, runtime=candidate.runtime, threads=threads)
        network = LoadedNetwork(
            role=candidate.role,
            name=candidate.name,
            runtime=candidate.runtime,
            provider=session.provider,
            precision=candidate.file.precision,
            threads=threads,
            size_bytes=candidate.size_bytes,
            params=candidate.params,
            macs=candidate.macs,
            peak_rss_bytes=footprint.peak_rss_bytes,
            load_ms=footprint.load_ms,
            sha256=candidate.file.sha256,
        )
        for batch in plan.batches:
            times = measure_times(session.run, plan.files, size, batch, plan.budget, plan.file_budget)
            yield build_row(network, times, quality, untrained)


def measure_times(
    run: Run, files: Sequence[str], size: tuple[int, int], batch: int, budget: Budget, file_budget: Budget
) -> Times:
    """Times a network on images of the given files, resized to (height, width)."""
    # Decoding is timed on many files, since photographs differ in size.
    endless_files = itertools.cycle(files)

    def decode() -> UInt8Array:
        return np.stack([load_pixels(file, *size) for file in itertools.islice(endless_files, batch)])

    image_NHWC = decode()  # before timing: `latency` is of the network alone
    return Times(
        batch=batch,
        latency=budget.measure(lambda: run(image_NHWC)),
        preprocess_ms=file_budget.measure(decode).p50,
        end_to_end_ms=file_budget.measure(lambda: run(decode())).p50,
    )


def build_row(
    network: LoadedNetwork, times: Times, quality: RetrievalQuality, untrained: ByIndex[Figures] | None
) -> Row:
    """One row of report.json, still without the percentage of the roofline."""
    return Row(
        role=network.role,
        name=network.name,
        runtime=network.runtime,
        provider=network.provider,
        precision=network.precision,
        batch=times.batch,
        threads=network.threads,
        size_bytes=network.size_bytes,
        params=network.params,
        macs=network.macs,
        latency_ms=times.latency,
        preprocess_ms=times.preprocess_ms,
        end_to_end_ms=times.end_to_end_ms,
        images_per_second=times.batch * times.latency.n / times.latency.seconds,  # a mean, unlike the percentiles
        peak_rss_bytes=network.peak_rss_bytes,
        load_ms=network.load_ms,
        retrieval=quality.scores,
        retention=quality.map_retention(lambda share: share.value),
        retention_ci95=quality.map_retention(lambda share: share.ci95),
        retention_ci95_queries=quality.map_retention(lambda share: share.ci95_queries),
        retention_ci95_classes=quality.map_retention(lambda share: share.ci95_classes),
        cosine_to_teacher=quality.cosine_to_teacher,
        untrained=untrained,
        spread=quality.spread,
        sha256=network.sha256,
    )


def with_size_ratio(row: Row, teacher: Row | None) -> Row:
    """The row with the size of the teacher in terms of its network's; unchanged without a teacher."""
    return row if teacher is None else row.model_copy(update={"size_ratio": row.size_ratio_to(teacher)})


def with_roofline(row: Row, roofline: Roofline) -> Row:
    """The row with its speed in percent of what this CPU allows; unchanged where a GPU did the work."""
    if row.macs is None or row.runtime == "tensorrt":
        return row
    percent = roofline.percent_of_roofline(
        macs=row.batch * row.macs,
        num_bytes=row.size_bytes,
        precision=row.precision,
        threads=row.threads,
        latency_ms=row.latency_ms.p50,
    )
    return row.model_copy(update={"percent_of_roofline": percent})
