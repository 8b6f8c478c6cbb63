"""Writes what was measured for a machine to read (report.json) and for a person (report.html, PNG pictures)."""

from __future__ import annotations

import importlib.util
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeembed.bench.examples import Example, as_sheet
from edgeembed.extras import install_hint
from edgeembed.files import write_atomically, write_json

log = logging.getLogger(__name__)

SCHEMA = "edgeembed-report/1"
PAGE_NEEDS = ("jinja2", "matplotlib")


def write_report(out: Path, report: Mapping[str, Any], examples: Sequence[Example]) -> None:
    """Writes report.json and, where there are examples, examples.png; where the packages for them are installed,
    report.html and pareto.png too."""
    write_json(out / "report.json", report)
    if examples:
        sheet = io.BytesIO()
        as_sheet(examples).save(sheet, "PNG")
        write_atomically(out / "examples.png", sheet.getvalue())
    missing = next((name for name in PAGE_NEEDS if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        log.info("report: %s; no report.html or pareto.png: that %s", out / "report.json", install_hint(missing))
        return
    from edgeembed.bench.page import write_page  # which a device need not be able to draw

    write_page(out, report, examples)
    log.info("report: %s", out / "report.html")
