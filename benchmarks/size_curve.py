"""The share of a teacher's quality that students keep against how much smaller they are, beside published figures.

Why: a retention says little without the size ratio that it was reached at.
Usage: python benchmarks/size_curve.py TABLE.json OUT.svg [--part "trained classes"]
TABLE.json is what `quality_table.py --json` wrote for one teacher and students of several sizes. Draws OUT.svg and
prints a markdown table. Published figures are shares of other measures on other images; the legend names each.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from variants import print_cells

from edgeembed.intervals import interval_text


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a paper or model card reports: (size ratio, share of the teacher's figure in percent)."""

    name: str
    measure: str
    points: tuple[tuple[float, float], ...]


PUBLISHED = (
    Published(name="EUPE (arXiv 2603.22387)", measure="ImageNet kNN", points=((22, 96.7), (90, 89.9), (317, 76.0))),
    Published(name="DINOv3 (timm cards)", measure="Oxford-Hard mAP", points=((22, 87.0), (78, 80.0), (320, 68.0))),
    Published(name="RADIOv2.5", measure="ImageNet kNN", points=((7, 95.4),)),
    Published(name="PE-Core", measure="zero-shot and kNN", points=((20, 92.0), (20, 91.0))),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", default="trained classes")
    asked = parser.parse_args()
    rows = [row for row in json.loads(asked.table.read_text(encoding="utf-8")) if row["part"] == asked.part]
    students = sorted((row for row in rows if "size_ratio" in row), key=lambda row: float(row["size_ratio"]["params"]))
    print_cells("student", "parameters", "MACs", "mAP", "kept, own index [queries] [classes]", "kept, teacher's index")
    print_cells(*["---"] * 6)
    for row in students:
        kept = []
        for of in (row["kept"]["symmetric"], row["kept"]["asymmetric"]):
            ends = [interval_text([100 * end for end in of[key]], digits=1) for key in ("ci95_queries", "ci95_classes")]
            kept.append(f"{100 * of['value']:.1f} % {' '.join(ends)}")
        sizes = [f"1/{row['size_ratio'][key]:.1f}" for key in ("params", "macs")]
        print_cells(row["name"].partition(",")[0], *sizes, f"{row['symmetric']['map']:.4f}", *kept)

    # The same figures give the same file, with text as text.
    matplotlib.rcParams.update({"svg.hashsalt": "size_curve", "svg.fonttype": "none"})
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.add_subplot()
    ratios = [row["size_ratio"]["params"] for row in students]
    for kind, label, line in (("symmetric", "own index", "o-"), ("asymmetric", "the teacher's index", "s--")):
        shares = [100 * row["kept"][kind]["value"] for row in students]
        ends = [[100 * end for end in row["kept"][kind]["ci95_classes"]] for row in students]
        errors = [[share - low for share, (low, _) in zip(shares, ends, strict=True)]]
        errors += [[high - share for share, (_, high) in zip(shares, ends, strict=True)]]
        axes.errorbar(ratios, shares, yerr=errors, fmt=line, capsize=3, label=f"edgeembed, Grocery mAP, {label}")
    for published in PUBLISHED:
        axes.plot(*zip(*published.points, strict=True), "x:", label=f"{published.name}, {published.measure}")
    axes.set_xscale("log")
    axes.set_xlabel("the teacher's parameters over the student's")
    axes.set_ylabel("share of the teacher's figure, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(asked.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
