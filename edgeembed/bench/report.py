"""Writes what was measured for a machine to read (report.json) and for a person (report.html, PNG pictures)."""

from __future__ import annotations

import datetime
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from edgeembed.bench import plots
from edgeembed.bench.examples import Example, as_sheet
from edgeembed.bench.summary import (
    MISSING,
    best_student,
    headline,
    megabytes,
    milliseconds,
    summaries,
    teacher_of,
    thread_text,
    three_figures,
)
from edgeembed.run import write_atomically, write_json

SCHEMA = "edgeembed-report/1"


def write_report(out: Path, report: Mapping[str, Any], examples: Sequence[Example]) -> None:
    """Writes report.json, report.html, pareto.png and, where there are examples, examples.png into a folder."""
    write_json(out / "report.json", report)
    write_atomically(out / "report.html", render_html(report, examples))
    write_atomically(out / "pareto.png", plots.as_png(plots.pareto(report)))
    if examples:
        sheet = io.BytesIO()
        as_sheet(examples).save(sheet, "PNG")
        write_atomically(out / "examples.png", sheet.getvalue())


def render_html(report: Mapping[str, Any], examples: Sequence[Example]) -> str:
    """One page that needs nothing else: no script, no font, no request."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgeembed.bench", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(ms=milliseconds, mb=megabytes, threads=thread_text, share=_share, percent=_percent)
    environment.filters.update(count=_count, figures=three_figures)
    files = summaries(report)
    return environment.get_template("report.html").render(
        report=report,
        files=files,
        teacher=teacher_of(files),
        best=best_student(files),
        headline=headline(report),
        domains=sorted(report["data"]["domains"]),
        pareto=plots.as_inline_svg(plots.pareto(report, ink=plots.INK_IN_SVG)),
        examples=examples,
        date=datetime.date.today().isoformat(),
    )


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f} %"


def _count(value: float | None) -> str:
    """Parameters and multiply-accumulates, in thousands, millions, billions."""
    if value is None:
        return MISSING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
