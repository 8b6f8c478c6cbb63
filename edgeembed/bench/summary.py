"""A finished report, one line a file instead of one a row; free of torch, works on report.json as it was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeembed.bench.candidates import Candidate
from edgeembed.chance import beside_chance
from edgeembed.intervals import interval_text, share_text

MISSING = "\N{EN DASH}"
NOT_SCORED = "not scored"

NEAR_BEST = 0.99
"""Of several bundles, those whose mAP is at least this share of the best one's are compared by their speed."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One file (or teacher): its rows, and the two at batch 1 that a device is judged by."""

    role: str
    name: str
    runtime: str
    precision: str
    sha256: str
    rows: tuple[Mapping[str, Any], ...]

    @property
    def title(self) -> str:
        runtime = "" if self.runtime in ("onnxruntime", "torch") else f" {self.runtime}"
        return f"{self.name} {self.precision}{runtime}"

    @property
    def singles(self) -> list[Mapping[str, Any]]:
        """Rows of batch 1, fewest threads first."""
        return sorted((row for row in self.rows if row["batch"] == 1), key=lambda row: row["threads"] or 0)

    @property
    def fastest(self) -> Mapping[str, Any]:
        """The row of batch 1 with the shortest median."""
        return min(self.singles, key=lambda row: float(row["latency_ms"]["p50"]))

    @property
    def best_ms(self) -> float:
        return float(self.fastest["latency_ms"]["p50"])

    @property
    def first(self) -> Mapping[str, Any]:
        return self.rows[0]

    @property
    def map(self) -> float | None:
        return self.score("symmetric", "map")

    @property
    def map_asymmetric(self) -> float | None:
        return self.score("asymmetric", "map")

    def score(self, kind: str, figure: str) -> float | None:
        """A retrieval figure of "symmetric" (own index) or "asymmetric" (the teacher's); None where not scored."""
        value = (self.first["retrieval"].get(kind) or {}).get(figure)
        return None if value is None else float(value)

    def interval(self, kind: str, figure: str, over: str | None = None) -> Sequence[float] | None:
        """The 95 % interval, (low, high), of a retrieval figure over "queries" or "classes"; by default the wider one.

        None where the report has none.
        """
        ends = ((self.first["retrieval"].get(kind) or {}).get(_interval_key(over)) or {}).get(figure)
        return None if ends is None or None in ends else ends

    @property
    def chance(self) -> float | None:
        """The mAP of a random ranking, in either index; None in reports of earlier versions."""
        own = self.first["retrieval"].get("symmetric") or {}
        return (own.get("chance") or {}).get("map")

    @property
    def untrained(self) -> float | None:
        """The mAP of the same architecture with random weights, in its own index."""
        figures = (self.first.get("untrained") or {}).get("symmetric") or {}
        return figures.get("map")

    def of_domain(self, domain: str | None) -> float | None:
        """mAP on its own index over a domain's queries, or the mean over domains for None."""
        own = self.first["retrieval"].get("symmetric") or {}
        scores = own.get("domain_mean") if domain is None else (own.get("per_domain") or {}).get(domain)
        return (scores or {}).get("map")

    def kept(self, kind: str) -> float | None:
        """Its mAP as a share of the teacher's, which searches its own index."""
        return (self.first["retention"] or {}).get(kind)

    def kept_interval(self, kind: str, over: str | None = None) -> Sequence[float] | None:
        """The 95 % interval of `kept` over "queries" or "classes"; by default the wider one."""
        intervals = self.first.get(f"retention_{_interval_key(over)}") or {}
        return intervals.get(kind)

    def map_text(self, kind: str) -> str:
        """mAP with its interval."""
        interval = self.interval(kind, "map")
        return score_text(self.score(kind, "map")) + ("" if interval is None else f" {interval_text(interval)}")

    def kept_text(self, kind: str) -> str:
        """`kept` with its interval."""
        kept = self.kept(kind)
        return MISSING if kept is None else share_text(kept, self.kept_interval(kind))

    def parameter_ratio(self, teacher: Summary | None) -> str:
        """The teacher's number of parameters to this file's, as "1.04 : 1"."""
        params, of_teacher = self.first["params"], teacher and teacher.first["params"]
        if self == teacher or not params or not of_teacher:
            return MISSING
        return f"{three_figures(of_teacher / params)} : 1"

    def is_of(self, candidate: Candidate) -> bool:
        return (candidate.name, candidate.runtime, candidate.file.sha256) == (self.name, self.runtime, self.sha256)


def _interval_key(over: str | None) -> str:
    return "ci95" if over is None else f"ci95_{over}"


def summaries(report: Mapping[str, Any]) -> list[Summary]:
    """The report's files in the order of its rows."""
    keys = ("role", "name", "runtime", "precision", "sha256")
    grouped: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in report["rows"]:
        grouped.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [Summary(**dict(zip(keys, key, strict=True)), rows=tuple(rows)) for key, rows in grouped.items()]


def teacher_of(files: list[Summary]) -> Summary | None:
    """The teacher that was measured through torch."""
    return next((file for file in files if file.role == "teacher" and file.runtime == "torch"), None)


def best_student(report: Mapping[str, Any]) -> Summary | None:
    """Of the files that are recommended, one a bundle, the fastest that is as good as the best one, or nearly.

    Where nothing was scored, the fastest of them.
    """
    keys = [(one["name"], one["runtime"], one["sha256"]) for one in report["recommended"]]
    files = [file for file in summaries(report) if (file.name, file.runtime, file.sha256) in keys]
    threads = {one["name"]: one["threads"] for one in report["recommended"]}
    best_map = max((file.map for file in files if file.map is not None), default=0.0)
    good = [file for file in files if (file.map or 0.0) >= NEAR_BEST * best_map]
    return min(good, key=lambda file: latency_on(file, threads[file.name])["latency_ms"]["p50"], default=None)


def latency_on(file: Summary, threads: int) -> Mapping[str, Any]:
    """The file's row of batch 1 with so many threads; an engine on a GPU has a single one."""
    return next((row for row in file.singles if row["threads"] == threads), file.singles[-1])


def headline(report: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    best = best_student(report)
    if best is None:
        return "No file is recommended."
    row = latency_on(best, next(one["threads"] for one in report["recommended"] if one["name"] == best.name))
    threads = row["threads"]
    speed = f"at {milliseconds(row['latency_ms']['p50'])} an image"
    if threads is not None:
        speed += " on one thread" if threads == 1 else f" on {threads} threads"
    if best.map is None:
        return f"{best.title} embeds {speed}; its retrieval could not be scored."
    reached = beside_chance(best.map, chance=best.chance, untrained=best.untrained, digits=3)
    if best.kept("symmetric") is None:
        return f"{best.title} reaches {reached} {speed}."
    text = f"{best.title} keeps {best.kept_text('symmetric')} of the teacher's mAP {speed}"
    if best.kept("asymmetric") is not None:
        text += f", and {best.kept_text('asymmetric')} when it searches the teacher's own index"
    ratio = best.parameter_ratio(teacher_of(summaries(report)))
    if ratio != MISSING:
        text += f" (teacher : student parameters {ratio})"
    return f"{text}: {reached}."


def milliseconds(value: float | None) -> str:
    """Three figures, as a person reads them."""
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
    """A figure that may not be known, as a table shows it."""
    return MISSING if value is None else f"{value:.4f}"


def three_figures(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def thread_text(threads: int | None) -> str:
    return MISSING if threads is None else str(threads)
