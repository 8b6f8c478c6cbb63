"""Renders report.html and pareto.png from report.json. Needs jinja2 and matplotlib (the extra [bench])."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import jinja2

from edgeembed.bench import plots
from edgeembed.bench.examples import Example
from edgeembed.bench.report_schema import Report
from edgeembed.bench.report_text import COLUMN_MEANINGS, recommendation_lines, unmatched_line
from edgeembed.bench.summary import (
    MISSING,
    FileSummary,
    best_student,
    file_summaries,
    headline,
    megabytes,
    milliseconds,
    optional_score,
    row_on,
    score_text,
    teacher_of,
    thread_text,
    three_figures,
)
from edgeembed.files import write_atomically
from edgeembed.intervals import interval_text, share_text
from edgeembed.spread import collapse_warning

DOMAINS_PER_TABLE = 8
"""As many columns as fit beside the names of the files on paper."""


def write_page(out: Path, report: Report, examples: Sequence[Example]) -> None:
    """Writes both files into a folder."""
    write_atomically(out / "report.html", render_html(report, examples))
    write_atomically(out / "pareto.png", plots.as_png(plots.pareto(report)))


def render_html(report: Report, examples: Sequence[Example]) -> str:
    """One page that needs nothing else: no script, no font, no request."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgeembed.bench", "."),
        autoescape=True,  # names of models and labels come from users
        undefined=jinja2.StrictUndefined,  # a misspelt name is an error, not an empty cell
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(ms=milliseconds, mb=megabytes, threads=thread_text, score=score_text)
    environment.filters.update(
        optional=optional_score, share=_share, interval=_interval, share_interval=_share_interval
    )
    environment.filters.update(count=_count, figures=three_figures)
    files = file_summaries(report)
    best = best_student(report)
    cores = report.machine.cores
    # Where nothing was scored there are no intervals, and the page leaves out their section.
    has_both_intervals = any(file.interval("symmetric", "map", "queries") for file in files)
    return environment.get_template("report.html").render(
        report=report,
        files=files,
        teacher=teacher_of(files),
        best=best,
        best_row=best and row_on(best, cores),
        row_on=row_on,
        headline=headline(report),
        recommendations=recommendation_lines(report),
        unmatched=unmatched_line(report),
        has_both_intervals=has_both_intervals,
        meanings=COLUMN_MEANINGS,
        collapsed=collapse_warnings(report, files),
        domains=sorted(report.data.domains),
        domains_per_table=DOMAINS_PER_TABLE,
        pareto=plots.as_inline_svg(plots.pareto(report, ink=plots.INK_IN_SVG)),
        examples=examples,
        date=datetime.date.today().isoformat(),
    )


def collapse_warnings(report: Report, files: Sequence[FileSummary]) -> list[str]:
    """One line for each file whose space is collapsed on the evaluation images."""
    labels = report.data.labels or None
    warnings = (collapse_warning(file.title, file.first.spread, num_classes=labels) for file in files)
    return [warning for warning in warnings if warning is not None]


def _interval(interval: Sequence[float] | None) -> str:
    return MISSING if interval is None else interval_text(interval)


def _share(share: float | None) -> str:
    return MISSING if share is None else share_text(share, None)


def _share_interval(interval: Sequence[float] | None) -> str:
    """The text of an interval of shares, in percent."""
    return MISSING if interval is None else interval_text([100 * end for end in interval], digits=1)


def _count(value: float | None) -> str:
    """A number of parameters or multiply-accumulates, in thousands (k), millions (M) or billions (G)."""
    if value is None:
        return MISSING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
