"""Summarises a report: one entry for each file instead of one row for each measurement. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from edgeembed.bench.candidates import Candidate
from edgeembed.bench.report_schema import ByIndex, Report, Row
from edgeembed.chance import beside_chance
from edgeembed.eval_json import IndexKind
from edgeembed.intervals import Interval, ResamplingUnit, interval_text, share_text
from edgeembed.size_ratio import SizeRatio, kept_text, size_text

MISSING = "\N{EN DASH}"
NOT_SCORED = "not scored"

NEAR_BEST = 0.99
"""Of several bundles, those whose mAP is at least this share of the best one's are compared by their speed."""


@dataclass(frozen=True, kw_only=True)
class FileSummary:
    """One file (or teacher) in one runtime, and its rows."""

    role: str
    name: str
    runtime: str
    precision: str
    sha256: str
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        # Only an unusual runtime is named, as titles stand beside points in a plot.
        runtime = "" if self.runtime in ("onnxruntime", "torch") else f" {self.runtime}"
        return f"{self.name} {self.precision}{runtime}"

    @property
    def single_image_rows(self) -> list[Row]:
        """Rows of batch 1, fewest threads first."""
        return sorted((row for row in self.rows if row.batch == 1), key=lambda row: row.threads or 0)

    @property
    def best_ms(self) -> float:
        """The shortest median time of one image, over all numbers of threads."""
        return min(row.latency_ms.p50 for row in self.single_image_rows)

    @property
    def first(self) -> Row:
        """One of the rows, for the values that all of them share."""
        return self.rows[0]

    @property
    def map(self) -> float | None:
        return self.score("symmetric", "map")

    @property
    def map_asymmetric(self) -> float | None:
        return self.score("asymmetric", "map")

    def score(self, kind: IndexKind, figure: str) -> float | None:
        """A retrieval figure of "symmetric" (own index) or "asymmetric" (the teacher's); None where not scored."""
        scores = self.first.retrieval.of(kind)
        return None if scores is None else scores.figures[figure]

    def interval(self, kind: IndexKind, figure: str, over: ResamplingUnit | None = None) -> Interval | None:
        """The 95 % interval, (low, high), of a retrieval figure over "queries" or "classes"; by default the wider one.

        None where the report has none.
        """
        scores = self.first.retrieval.of(kind)
        if scores is None:
            return None
        # Reports of earlier versions lack the intervals of the two kinds.
        intervals = {None: scores.ci95, "queries": scores.ci95_queries, "classes": scores.ci95_classes}
        return intervals[over].get(figure)

    @property
    def chance(self) -> float | None:
        """The mAP of a random ranking, in either index; None in reports of earlier versions."""
        scores = self.first.retrieval.symmetric
        return None if scores is None else scores.chance.get("map")

    @property
    def untrained(self) -> float | None:
        """The mAP of the same architecture with random weights, in its own index."""
        figures = self.first.untrained
        return None if figures is None else (figures.symmetric or {}).get("map")

    def map_of_domain(self, domain: str | None) -> float | None:
        """mAP in its own index over a domain's queries; the mean over domains for None."""
        scores = self.first.retrieval.symmetric
        if scores is None:
            return None
        return (scores.domain_mean if domain is None else scores.per_domain.get(domain, {})).get("map")

    def retention(self, kind: IndexKind) -> float | None:
        """Its mAP as a share of the teacher's mAP in the teacher's own index."""
        shares = self.first.retention
        return None if shares is None else shares.of(kind)

    def retention_interval(self, kind: IndexKind, over: ResamplingUnit | None = None) -> Interval | None:
        """The 95 % interval of `retention` over "queries" or "classes"; by default the wider one."""
        row = self.first
        intervals: dict[str | None, ByIndex[Interval] | None] = {
            None: row.retention_ci95,
            "queries": row.retention_ci95_queries,
            "classes": row.retention_ci95_classes,
        }
        chosen = intervals[over]
        return None if chosen is None else chosen.of(kind)

    def map_text(self, kind: IndexKind) -> str:
        """The mAP and its interval as text."""
        interval = self.interval(kind, "map")
        return score_text(self.score(kind, "map")) + ("" if interval is None else f" {interval_text(interval)}")

    def retention_text(self, kind: IndexKind) -> str:
        """`retention` in percent with its interval."""
        share = self.retention(kind)
        return MISSING if share is None else share_text(share, self.retention_interval(kind))

    def size_ratio(self, teacher: FileSummary | None) -> SizeRatio | None:
        """The teacher's parameters and MACs divided by this file's, also in reports that do not hold them."""
        return None if teacher is None else self.first.size_ratio_to(teacher.first)

    def size_texts(self, teacher: FileSummary | None) -> tuple[str, str]:
        """Parameters and MACs of this file as a table shows them: "1/4.2" of the teacher's."""
        ratio = self.size_ratio(teacher) or SizeRatio()
        params, macs = (MISSING if value is None else size_text(value) for value in (ratio.params, ratio.macs))
        return params, macs

    def is_of(self, candidate: Candidate) -> bool:
        return (candidate.name, candidate.runtime, candidate.file.sha256) == (self.name, self.runtime, self.sha256)


def file_summaries(report: Report) -> list[FileSummary]:
    """The report's files in the order of its rows."""
    rows_of: dict[tuple[str, str, str, str, str], list[Row]] = {}
    for row in report.rows:
        rows_of.setdefault((row.role, row.name, row.runtime, row.precision, row.sha256), []).append(row)
    return [
        FileSummary(role=role, name=name, runtime=runtime, precision=precision, sha256=sha256, rows=tuple(rows))
        for (role, name, runtime, precision, sha256), rows in rows_of.items()
    ]


def teacher_of(files: list[FileSummary]) -> FileSummary | None:
    """The teacher, which is measured in torch; a bundle of a teacher has other runtimes."""
    return next((file for file in files if file.role == "teacher" and file.runtime == "torch"), None)


def best_student(report: Report) -> FileSummary | None:
    """Of the recommended files, one for each bundle, the fastest whose mAP is near the best one's.

    Where nothing was scored, the fastest of them.
    """
    keys = [(one.name, one.runtime, one.sha256) for one in report.recommended]
    files = [file for file in file_summaries(report) if (file.name, file.runtime, file.sha256) in keys]
    # Speeds are compared on the number of threads that the recommendation is for.
    threads = {one.name: one.threads for one in report.recommended}
    best_map = max((file.map for file in files if file.map is not None), default=0.0)
    # Where nothing was scored, `best_map` is 0 and every file is near it.
    near_best = [file for file in files if (file.map or 0.0) >= NEAR_BEST * best_map]
    return min(near_best, key=lambda file: row_on(file, threads[file.name]).latency_ms.p50, default=None)


def row_on(file: FileSummary, threads: int) -> Row:
    """The file's row of batch 1 with so many threads; an engine on a GPU has a single one."""
    rows = file.single_image_rows
    return next((row for row in rows if row.threads == threads), rows[-1])


def headline(report: Report) -> str:
    """The result in one sentence."""
    best = best_student(report)
    if best is None:
        return "No file is recommended."
    row = row_on(best, next(one.threads for one in report.recommended if one.name == best.name))
    # From here on each early return is a report that lacks something: labels, or a teacher.
    speed = f"at {milliseconds(row.latency_ms.p50)} an image"
    if row.threads is not None:
        speed += " on one thread" if row.threads == 1 else f" on {row.threads} threads"
    if best.map is None:
        return f"{best.title} embeds {speed}; its retrieval could not be scored."
    reached = beside_chance(best.map, chance=best.chance, untrained=best.untrained, digits=3)
    if best.retention("symmetric") is None:
        return f"{best.title} reaches {reached} {speed}."
    ratio = best.size_ratio(teacher_of(file_summaries(report)))
    text = f"{best.title} keeps {kept_text(best.retention_text('symmetric'), ratio)}, {speed}"
    if best.retention("asymmetric") is not None:
        text += f", and {best.retention_text('asymmetric')} when it searches the teacher's own index"
    return f"{text}: {reached}."


def milliseconds(value: float | None) -> str:
    """A time in ms or s with three figures."""
    if value is None:
        return MISSING
    return f"{three_figures(value)} ms" if value < 1000 else f"{three_figures(value / 1000)} s"


def megabytes(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{three_figures(value / 1e6)} MB" if value < 1e9 else f"{three_figures(value / 1e9)} GB"


def score_text(value: float | None) -> str:
    """A retrieval figure as a table shows it."""
    return NOT_SCORED if value is None else f"{value:.4f}"


def optional_score(value: float | None) -> str:
    """A figure that the report may lack, as a table shows it."""
    return MISSING if value is None else f"{value:.4f}"


def three_figures(value: float) -> str:
    # From 99.95 on, three figures are 100, which `#.3g` writes with a point at the end.
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def thread_text(threads: int | None) -> str:
    return MISSING if threads is None else str(threads)
