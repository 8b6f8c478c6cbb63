"""Prints the table of files and the headline on stdout; needs the base install only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeembed.bench.explanation import COLUMN_MEANINGS, recommendation_lines
from edgeembed.bench.summary import (
    MISSING,
    headline,
    megabytes,
    milliseconds,
    optional_score,
    percent,
    score_text,
    summaries,
    thread_text,
)

TEXT_COLUMNS = ("model", "runtime")
NUMBER_COLUMNS = (
    "threads",
    "p50",
    "p90",
    "end to end",
    "size",
    "memory",
    "mAP",
    "chance",
    "untrained",
    "mAP on teacher's",
    "kept",
    "% of roofline",
)
EXPLAINED = ("mAP", "chance", "untrained", "kept", "% of roofline")


def print_summary(report: Mapping[str, Any]) -> None:
    """One line a file and number of threads, at batch 1."""
    lines = [
        (
            f"{file.name} {file.precision}",
            file.runtime,
            thread_text(row["threads"]),
            milliseconds(row["latency_ms"]["p50"]),
            milliseconds(row["latency_ms"]["p90"]),
            milliseconds(row["end_to_end_ms"]),
            megabytes(row["size_bytes"]),
            megabytes(row["peak_rss_bytes"]),
            score_text(file.map),
            optional_score(file.chance),
            optional_score(file.untrained),
            MISSING if row["retrieval"]["asymmetric"] is None else score_text(file.map_asymmetric),
            percent(file.kept("symmetric")),
            MISSING if row["percent_of_floor"] is None else f"{row['percent_of_floor']:.0f}",
        )
        for file in summaries(report)
        for row in file.singles
    ]
    for line in as_table([(*TEXT_COLUMNS, *NUMBER_COLUMNS), *lines]):
        print(line)
    for item in report["skipped"]:
        print(f"skipped: {item['name']}: {item['reason']}")
    if report["data"].get("not_scored"):
        print(f"retrieval not scored: {report['data']['not_scored']}")
    for name in EXPLAINED:
        print(f"{name}: {COLUMN_MEANINGS[name]}")
    for line in recommendation_lines(report):
        print(line)
    print(headline(report))


def as_table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns under each other, texts to the left and numbers to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < len(TEXT_COLUMNS) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
