"""Writes the folder of a report: report.json for programs, report.html and PNG pictures for people."""

from __future__ import annotations

import importlib.util
import io
import logging
from collections.abc import Sequence
from pathlib import Path

from edgeembed.bench.examples import Example, as_sheet
from edgeembed.bench.report_schema import Report
from edgeembed.extras import install_hint
from edgeembed.files import write_atomically, write_json

log = logging.getLogger(__name__)

PAGE_NEEDS = ("jinja2", "matplotlib")


def write_report(out: Path, report: Report, examples: Sequence[Example]) -> None:
    """Writes report.json, and examples.png where there are examples.

    Where the packages of the extra [bench] are installed, it writes report.html and pareto.png too.
    """
    write_json(out / "report.json", report.as_json())
    if examples:
        sheet = io.BytesIO()
        as_sheet(examples).save(sheet, "PNG")
        write_atomically(out / "examples.png", sheet.getvalue())
    missing = next((name for name in PAGE_NEEDS if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        log.info("report: %s; no report.html or pareto.png: that %s", out / "report.json", install_hint(missing))
        return
    from edgeembed.bench.page import write_page  # needs packages of the extra [bench]

    write_page(out, report, examples)
    log.info("report: %s", out / "report.html")
