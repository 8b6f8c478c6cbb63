"""The rows of the report: one file or teacher at one batch size and one number of threads, timed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeembed.arrays import UInt8Array
from edgeembed.bench.candidates import Candidate
from edgeembed.bench.footprint import probe
from edgeembed.bench.latency import Budget, Latency
from edgeembed.bench.retrieval import Quality
from edgeembed.bench.roofline import Floor
from edgeembed.device.images import load_pixels
from edgeembed.device.runtimes import open_session
from edgeembed.intervals import Interval
from edgeembed.spread import Spread

Run = Callable[[UInt8Array], object]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of `rows`; every key is always there, None where it does not apply.

    `latency_ms`, `preprocess_ms` (image files to pixels) and `end_to_end_ms` (image files to embeddings) are of one
    call with `batch` images; the latter two are medians.
    """

    role: str
    name: str
    runtime: str
    provider: str
    precision: str
    batch: int
    threads: int | None
    size_bytes: int
    params: int | None
    macs: int | None
    latency_ms: Latency | None = None
    preprocess_ms: float | None = None
    end_to_end_ms: float | None = None
    images_per_second: float | None = None
    peak_rss_bytes: int | None = None
    load_ms: float | None = None
    percent_of_floor: float | None = None
    retrieval: dict[str, Any]
    retention: dict[str, float | None] | None
    """`symmetric` and `asymmetric` mAP as a share of the teacher's mAP in its own index, and their 95 % intervals."""
    retention_ci95: dict[str, Interval | None] | None
    retention_ci95_queries: dict[str, Interval | None] | None
    retention_ci95_classes: dict[str, Interval | None] | None
    cosine_to_teacher: dict[str, float] | None
    untrained: dict[str, Any] | None = None
    """`symmetric` and `asymmetric` figures of the same architecture with random weights."""
    spread: Spread | None = None
    sha256: str

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rows share: which files are timed, over which batches and threads, for how long."""

    files: Sequence[str]
    batches: Sequence[int]
    threads: Sequence[int]
    budget: Budget
    file_budget: Budget  # preprocessing and end to end
    teacher_budget: Budget


def student_rows(
    candidate: Candidate, quality: Quality, setting: Setting, untrained: dict[str, Any] | None = None
) -> Iterator[Row]:
    """A bundle's file at every batch size and number of threads, in the runtime that it is for."""
    height, width = candidate.bundle.input.height, candidate.bundle.input.width
    for threads in [None] if candidate.runtime == "tensorrt" else setting.threads:
        footprint = probe(candidate.path, runtime=candidate.runtime, threads=threads, height=height, width=width)
        session = open_session(candidate.path, runtime=candidate.runtime, threads=threads)
        untimed = Row(
            role=candidate.role,
            name=candidate.name,
            runtime=candidate.runtime,
            provider=session.provider,
            precision=candidate.file.precision,
            batch=1,
            threads=threads,
            size_bytes=candidate.size_bytes,
            params=candidate.params,
            macs=candidate.macs,
            peak_rss_bytes=footprint.peak_rss_bytes,
            load_ms=footprint.load_ms,
            untrained=untrained,
            sha256=candidate.file.sha256,
            **quality.row_facts(),
        )
        for batch in setting.batches:
            row = dataclasses.replace(untimed, batch=batch)
            yield timed(row, session.run, (height, width), setting, setting.budget, setting.file_budget)


def timed(row: Row, run: Run, size: tuple[int, int], setting: Setting, budget: Budget, file_budget: Budget) -> Row:
    """The row with its times: of the network alone, of decoding alone and of both together, on real images."""
    files = itertools.cycle(setting.files)

    def decode() -> UInt8Array:
        return np.stack([load_pixels(file, *size) for file in itertools.islice(files, row.batch)])

    image_NHWC = decode()
    latency = budget.measure(lambda: run(image_NHWC))
    preprocess = file_budget.measure(decode)
    end_to_end = file_budget.measure(lambda: run(decode()))
    return dataclasses.replace(
        row,
        latency_ms=latency,
        preprocess_ms=preprocess.p50,
        end_to_end_ms=end_to_end.p50,
        images_per_second=row.batch * latency.n / latency.seconds,
    )


def with_floor(row: Row, floor: Floor) -> Row:
    """The timed row beside the least time that this CPU could take; left as it is where a GPU did the work."""
    if row.macs is None or row.latency_ms is None or row.runtime == "tensorrt":
        return row
    percent = floor.percent_of_floor(
        macs=row.batch * row.macs,
        num_bytes=row.size_bytes,
        precision=row.precision,
        threads=row.threads,
        latency_ms=row.latency_ms.p50,
    )
    return dataclasses.replace(row, percent_of_floor=percent)
