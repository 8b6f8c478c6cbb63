"""Draws the plot of a report: latency of one image against mAP, for each file and the teacher."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from edgeembed.bench.plot_labels import label_points
from edgeembed.bench.report_schema import Report
from edgeembed.bench.summary import NOT_SCORED, FileSummary, file_summaries, teacher_of

PALETTE = ("#3b82c4", "#d9822b", "#2f9e74", "#c2528b", "#8a6fd1", "#a08a1a")
"""One colour for each model: distinct for colour-blind readers, legible on white and on black."""
INK = "#1c2430"
INK_IN_SVG = "#010203"  # replaced by the page's own text colour
MOST_LETTERS = 44  # of a name beside its point


def pareto(report: Report, *, ink: str = INK) -> Figure:
    """Latency at batch 1 (log) against mAP; filled: own index, hollow: the teacher's index, dashes: the teacher."""
    figure = Figure(figsize=(6.0, 4.1), layout="constrained")
    axes = figure.add_subplot()
    files = file_summaries(report)
    teacher = teacher_of(files)
    names = list(dict.fromkeys(file.name for file in files if file is not teacher))
    labels = []
    for file in files:
        if file is teacher:
            continue
        colour = PALETTE[names.index(file.name) % len(PALETTE)]
        if file.map is None:
            continue
        if file.map_asymmetric is not None:
            # A line connects the two points of a file.
            axes.plot([file.best_ms] * 2, [file.map, file.map_asymmetric], color=colour, linewidth=1, alpha=0.6)
            axes.plot(file.best_ms, file.map_asymmetric, "o", color=colour, markerfacecolor="none", markersize=8)
        axes.plot(file.best_ms, file.map, "o", color=colour, markersize=8)
        labels.append((file.best_ms, file.map, shortened(file.title)))
    if teacher is not None and teacher.map is not None:
        axes.axhline(teacher.map, color=ink, linestyle=(0, (5, 4)), linewidth=1, alpha=0.7)
        axes.plot(teacher.best_ms, teacher.map, "*", color=ink, markersize=13)
        labels.append((teacher.best_ms, teacher.map, "teacher"))
    # Chance is the same for all files.
    for value, name in ((files[0].chance, "chance"), (best_untrained(files), "best untrained")) if files else ():
        if value is not None and labels:
            axes.axhline(value, color=ink, linestyle=":", linewidth=1, alpha=0.7)
            axes.text(0.01, value, name, transform=axes.get_yaxis_transform(), va="bottom", fontsize=8, color=ink)
    if not labels:
        axes.text(0.5, 0.5, f"retrieval {NOT_SCORED}", transform=axes.transAxes, ha="center", color=ink)
    _style(axes, files, ink)
    _legend(axes, ink, with_teacher=teacher is not None)
    label_points(figure, axes, labels, ink=ink)
    return figure


def shortened(title: str) -> str:
    """Leaves out the middle of a long name: precision and runtime stand at its end and tell files apart."""
    half = MOST_LETTERS // 2
    return title if len(title) <= MOST_LETTERS else f"{title[: half - 1]}\N{HORIZONTAL ELLIPSIS}{title[-half:]}"


def best_untrained(files: Sequence[FileSummary]) -> float | None:
    """The highest mAP of the files' architectures with random weights."""
    return max((file.untrained for file in files if file.untrained is not None), default=None)


def _style(axes: Axes, files: Sequence[FileSummary], ink: str) -> None:
    times = [file.best_ms for file in files]
    values = [value for file in files for value in (file.map, file.map_asymmetric, file.chance) if value is not None]
    values = values or [0.0, 1.0]  # nothing was scored
    axes.set_xscale("log")
    low, high = min(times), max(times)
    span = max((high / low) ** 0.12, 1.5)
    # Room for the labels beside the points, more at the right, where most labels are.
    axes.set_xlim(low / span**1.5, high * span**2)
    margin = max(0.12 * (max(values) - min(values)), 0.01)
    axes.set_ylim(min(values) - margin, max(values) + margin)
    # Over a wide range the ticks at 2 and 5 would overlap.
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: _tick(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("median time for one image, best number of threads", color=ink)
    axes.set_ylabel("mAP", color=ink)
    axes.grid(True, which="major", color=ink, alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=ink, which="both", labelsize=9)
    axes.patch.set_alpha(0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink)
        spine.set_alpha(0.5)


def _tick(value_ms: float) -> str:
    return f"{value_ms:g} ms" if value_ms < 1000 else f"{value_ms / 1000:g} s"


def _legend(axes: Axes, ink: str, *, with_teacher: bool) -> None:
    if not with_teacher:
        return
    axes.plot([], [], "o", color=ink, markersize=7, label="searches its own index")
    axes.plot([], [], "o", color=ink, markerfacecolor="none", markersize=7, label="searches the teacher's index")
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=9, labelcolor=ink, borderaxespad=0.2
    )
    legend.set_in_layout(True)


def as_png(figure: Figure, *, dpi: int = 150) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a name in another script: boxes
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def as_inline_svg(figure: Figure) -> str:
    """An <svg> element without XML prologue; what was drawn in INK_IN_SVG takes the text colour of the page.

    Text stays text, so that the browser draws names in scripts that matplotlib's font lacks.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor="none")
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK_IN_SVG, "currentColor")
