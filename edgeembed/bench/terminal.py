"""Prints the table of files and the headline on stdout; needs the base install only."""

from __future__ import annotations

from collections.abc import Sequence

from edgeembed.bench.report_schema import Report
from edgeembed.bench.report_text import COLUMN_MEANINGS, recommendation_lines, unmatched_line
from edgeembed.bench.summary import (
    MISSING,
    file_summaries,
    headline,
    megabytes,
    milliseconds,
    optional_score,
    teacher_of,
    thread_text,
)

TEXT_COLUMNS = ("model", "runtime")
SPEED_COLUMNS = ("threads", "p50", "p90", "end to end", "size", "memory", "% of roofline")
QUALITY_COLUMNS = (
    "mAP",
    "chance",
    "untrained",
    "kept",
    "mAP on teacher's",
    "kept on teacher's",
    "of teacher's params",
    "of its MACs",
)
# Names that a newcomer does not know; report.html explains all.
EXPLAINED_COLUMNS = (
    "mAP",
    "[low, high]",
    "chance",
    "untrained",
    "kept",
    "of teacher's params",
    "of its MACs",
    "% of roofline",
)


def print_summary(report: Report) -> None:
    """A table of speed at batch 1 by file and threads, one of retrieval by file, and the recommended files."""
    # Two tables, because one with all columns is wider than a terminal.
    for columns, lines in ((SPEED_COLUMNS, speed_lines(report)), (QUALITY_COLUMNS, quality_lines(report))):
        for line in as_table([(*TEXT_COLUMNS, *columns), *lines]):
            print(line)
        print()
    for skipped in report.skipped:
        print(f"skipped: {skipped.name}: {skipped.reason}")
    if report.data.not_scored:
        print(f"retrieval not scored: {report.data.not_scored}")
    elif (unmatched := unmatched_line(report)) is not None:
        print(unmatched)
    for name in EXPLAINED_COLUMNS:
        print(f"{name}: {COLUMN_MEANINGS[name]}")
    for line in recommendation_lines(report):
        print(line)
    # The result comes last, where it is still visible when the tables have scrolled away.
    print(headline(report))


def speed_lines(report: Report) -> list[tuple[str, ...]]:
    """The cells of the first table: a line for each file and number of threads."""
    return [
        (
            f"{file.name} {file.precision}",
            file.runtime,
            thread_text(row.threads),
            milliseconds(row.latency_ms.p50),
            milliseconds(row.latency_ms.p90),
            milliseconds(row.end_to_end_ms),
            megabytes(row.size_bytes),
            megabytes(row.peak_rss_bytes),
            MISSING if row.percent_of_roofline is None else f"{row.percent_of_roofline:.0f}",
        )
        for file in file_summaries(report)
        for row in file.single_image_rows
    ]


def quality_lines(report: Report) -> list[tuple[str, ...]]:
    """The cells of the second table: a line for each file."""
    files = file_summaries(report)
    teacher = teacher_of(files)
    return [
        (
            f"{file.name} {file.precision}",
            file.runtime,
            file.map_text("symmetric"),
            optional_score(file.chance),
            optional_score(file.untrained),
            file.retention_text("symmetric"),
            MISSING if file.first.retrieval.asymmetric is None else file.map_text("asymmetric"),
            file.retention_text("asymmetric"),
            *file.size_texts(teacher),
        )
        for file in files
    ]


def as_table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns: texts to the left, numbers to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < len(TEXT_COLUMNS) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
