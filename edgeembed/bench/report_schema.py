"""Typed models of the contents of report.json.

Keys that a newer version added are ignored, and what older versions lack has a default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from edgeembed.bench.latency import Latency
from edgeembed.eval_json import IndexKind
from edgeembed.intervals import Interval
from edgeembed.machine import Machine
from edgeembed.metrics import RetrievalScores
from edgeembed.size_ratio import SizeRatio, size_ratio
from edgeembed.spread import Spread

SCHEMA = "edgeembed-report/1"

Figures: TypeAlias = dict[str, float | None]
"""Retrieval figures by their name in `metrics.METRICS`."""
ValueT = TypeVar("ValueT")
OtherT = TypeVar("OtherT")


class Part(BaseModel):
    """A group of keys of report.json."""

    model_config = ConfigDict(extra="ignore", frozen=True, from_attributes=True)


class ByIndex(Part, Generic[ValueT]):
    """A value for each index that a file's queries search: its own (symmetric) and the teacher's (asymmetric)."""

    symmetric: ValueT | None = None
    asymmetric: ValueT | None = None

    def of(self, kind: IndexKind) -> ValueT | None:
        return self.symmetric if kind == "symmetric" else self.asymmetric

    def map(self, function: Callable[[ValueT], OtherT | None]) -> ByIndex[OtherT]:
        """Applies a function to each value that is not None."""
        symmetric, asymmetric = (
            None if value is None else function(value) for value in (self.symmetric, self.asymmetric)
        )
        return ByIndex(symmetric=symmetric, asymmetric=asymmetric)


# A report can be pickled: pydantic makes these findable by name only where they are first named in a module's body.
_FINDABLE_BY_PICKLE = (ByIndex[RetrievalScores], ByIndex[float], ByIndex[Interval], ByIndex[Figures])


class CosineToTeacher(Part):
    """Percentiles over images of the cosine between a file's embedding and the teacher's."""

    p1: float
    p50: float


class Row(Part):
    """One file or teacher at one batch size and one number of threads; None where a key does not apply.

    `latency_ms`, `preprocess_ms` (image files to pixels) and `end_to_end_ms` (image files to embeddings) are of one
    call with `batch` images; the latter two are medians. `retention` is the mAP as a share of the teacher's mAP in the
    teacher's own index; `size_ratio`, the teacher's parameters and MACs divided by the row's. `untrained`: figures of
    the same architecture with random weights.
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
    latency_ms: Latency
    preprocess_ms: float | None
    end_to_end_ms: float | None
    images_per_second: float | None
    peak_rss_bytes: int | None
    load_ms: float | None
    # The key in the file differs from the name here, so that reports of all versions can be read.
    percent_of_roofline: float | None = Field(default=None, alias="percent_of_floor")
    retrieval: ByIndex[RetrievalScores]
    retention: ByIndex[float] | None = None
    # The wider of the next two, which resample queries and classes.
    retention_ci95: ByIndex[Interval] | None = None
    retention_ci95_queries: ByIndex[Interval] | None = None
    retention_ci95_classes: ByIndex[Interval] | None = None
    size_ratio: SizeRatio | None = None
    cosine_to_teacher: CosineToTeacher | None = None
    untrained: ByIndex[Figures] | None = None
    spread: Spread | None = None
    # Tells files of one name apart, and connects the row with `Recommendation.sha256`.
    sha256: str

    def size_ratio_to(self, teacher: Row) -> SizeRatio | None:
        """The size of a teacher in terms of this row's network; None for the teacher's own rows."""
        if (self.role, self.sha256) == (teacher.role, teacher.sha256):
            return None
        return size_ratio(teacher_params=teacher.params, teacher_macs=teacher.macs, params=self.params, macs=self.macs)


class DomainCounts(Part):
    queries: int
    index: int


class DataFacts(Part):
    """The images that were embedded and scored. `queries` and `index` do not count the `unreadable` images."""

    fingerprint: str
    split: str
    queries: int
    index: int
    labels: int
    unreadable: int
    # Queries without a match in the index have no average precision, and no mean counts them.
    queries_without_match: int = 0
    unlabelled: int = 0
    not_scored: str | None = None
    domains: dict[str, DomainCounts]


class RooflineRates(Part):
    """GFLOP/s of the best matrix product by precision and number of threads, and GB/s of copying memory."""

    gemm_gflops: dict[str, dict[str, float | None]]
    copy_gb_per_s: float


class SkippedFile(Part):
    """A file that could not be run here."""

    name: str
    reason: str


class RefusedFile(Part):
    """A file in a runtime that must not become the default here, and why; `p50_ms` of one image on all cores."""

    path: str
    precision: str
    runtime: str
    p50_ms: float
    reason: str


class Recommendation(Part):
    """The file and runtime of one bundle to use on this machine, as an `Embedder` would open it with `threads` threads.

    `path` to `p50_ms` are None where nothing of the bundle can be recommended. `is_measured` is False where no file
    could be compared with the fp32 file, or none agreed with it: then it is the default of machines without
    measurements. `in_use` is the default of an `Embedder` here now, `PATH in RUNTIME`. `not_shown` is a line where the
    images of the export did not show that the file's loss of mAP is within its limit.
    """

    name: str
    folder: str
    path: str | None
    precision: str | None
    runtime: str | None
    sha256: str | None
    p50_ms: float | None
    threads: int
    is_measured: bool
    in_use: str | None
    refused: tuple[RefusedFile, ...]
    not_shown: str | None = None


class Report(Part):
    """report.json."""

    schema_: str = Field(default=SCHEMA, alias="schema")
    machine: Machine
    versions: dict[str, str]
    data: DataFacts
    roofline: RooflineRates = Field(alias="floor")
    rows: tuple[Row, ...]
    skipped: tuple[SkippedFile, ...]
    recommended: tuple[Recommendation, ...]

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(by_alias=True)
