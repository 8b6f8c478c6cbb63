"""Prints the table of files and the headline on stderr; needs the base install only."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from edgeembed.bench.summary import MISSING, headline, megabytes, milliseconds, percent, summaries, thread_text

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
    "% of floor",
)


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
            *(four_digits(value) for value in (file.map, file.chance, file.untrained, file.map_asymmetric)),
            percent((row["retention"] or {}).get("symmetric")),
            MISSING if row["percent_of_floor"] is None else f"{row['percent_of_floor']:.0f}",
        )
        for file in summaries(report)
        for row in file.singles
    ]
    for line in as_table([(*TEXT_COLUMNS, *NUMBER_COLUMNS), *lines]):
        print(line, file=sys.stderr)
    for item in report["skipped"]:
        print(f"skipped: {item['name']}: {item['reason']}", file=sys.stderr)
    if report["data"].get("not_scored"):
        print(f"retrieval not scored: {report['data']['not_scored']}", file=sys.stderr)
    print(headline(report), file=sys.stderr)


def four_digits(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


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
