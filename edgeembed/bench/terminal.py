"""The result on the terminal, on stderr: a table of files and the headline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from edgeembed.bench.summary import MISSING, headline, megabytes, milliseconds, summaries, thread_text


def print_summary(report: Mapping[str, Any]) -> None:
    """One line a file and number of threads, at batch 1."""
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    table.add_column("model")
    table.add_column("runtime")
    columns = ("threads", "p50", "p90", "end to end", "size", "memory", "mAP", "mAP on teacher's", "kept", "% of floor")
    for name in columns:
        table.add_column(name, justify="right")
    for file in summaries(report):
        for row in file.singles:
            kept = (row["retention"] or {}).get("symmetric")
            table.add_row(
                f"{file.name} {file.precision}",
                file.runtime,
                thread_text(row["threads"]),
                milliseconds(row["latency_ms"]["p50"]),
                milliseconds(row["latency_ms"]["p90"]),
                milliseconds(row["end_to_end_ms"]),
                megabytes(row["size_bytes"]),
                megabytes(row["peak_rss_bytes"]),
                f"{file.map:.4f}",
                MISSING if file.map_asymmetric is None else f"{file.map_asymmetric:.4f}",
                MISSING if kept is None else f"{100 * kept:.1f} %",
                MISSING if row["percent_of_floor"] is None else f"{row['percent_of_floor']:.0f}",
            )
    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=160)
    console.print(table)
    for item in report["skipped"]:
        console.print(f"skipped: {item['name']}: {item['reason']}", markup=False, highlight=False)
    console.print(headline(report), markup=False, highlight=False)
