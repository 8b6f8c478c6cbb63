"""A finished report, one line a file instead of one a row; free of torch, works on report.json as it was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeembed.bench.candidates import Candidate
from edgeembed.chance import beside_chance

MISSING = "\N{EN DASH}"

NEAR_BEST = 0.99
"""Among files whose mAP is at least this share of the best one's, the fastest is the one to recommend."""


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
        """None where retrieval could not be scored."""
        return self._figure("symmetric")

    @property
    def map_asymmetric(self) -> float | None:
        return self._figure("asymmetric")

    @property
    def chance(self) -> float | None:
        """The mAP of a random ranking, in either index; None in reports of earlier versions."""
        chance = self.first["retrieval"]["symmetric"].get("chance") or {}
        return chance.get("map")

    @property
    def untrained(self) -> float | None:
        """The mAP of the same architecture with random weights, in its own index."""
        figures = (self.first.get("untrained") or {}).get("symmetric") or {}
        return figures.get("map")

    def _figure(self, kind: str) -> float | None:
        scores = self.first["retrieval"][kind]
        return None if scores is None or scores["map"] is None else float(scores["map"])

    def is_of(self, candidate: Candidate) -> bool:
        return (candidate.name, candidate.runtime, candidate.file.sha256) == (self.name, self.runtime, self.sha256)


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


def best_student(files: list[Summary]) -> Summary | None:
    """The fastest file that is as good as the best one, or nearly; of files without scores the fastest."""
    exported = [file for file in files if file.runtime != "torch"]
    if not exported:
        return None
    best_map = max(file.map or 0.0 for file in exported)
    return min((file for file in exported if (file.map or 0.0) >= NEAR_BEST * best_map), key=lambda file: file.best_ms)


def headline(report: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    best = best_student(summaries(report))
    if best is None:
        return "Nothing was measured."
    row, threads = best.fastest, best.fastest["threads"]
    speed = f"at {milliseconds(best.best_ms)} an image"
    if threads is not None:
        speed += " on one thread" if threads == 1 else f" on {threads} threads"
    retention = row["retention"] or {}
    if best.map is None:
        return f"{best.title}: retrieval was not scored; {speed.removeprefix('at ')}."
    reached = beside_chance(best.map, chance=best.chance, untrained=best.untrained, digits=3)
    if retention.get("symmetric") is None:
        return f"{best.title} reaches {reached} {speed}."
    text = f"{best.title} keeps {100 * retention['symmetric']:.1f} % of the teacher's mAP {speed}"
    if retention.get("asymmetric") is not None:
        text += f", and {100 * retention['asymmetric']:.1f} % when it searches the teacher's own index"
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


def share(value: float | None) -> str:
    """A figure of 0..1 with three digits."""
    return MISSING if value is None else f"{value:.3f}"


def percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f} %"


def three_figures(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def thread_text(threads: int | None) -> str:
    return MISSING if threads is None else str(threads)
