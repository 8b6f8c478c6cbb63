"""`edgeembed bench`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.options import Bundles, Json

log = logging.getLogger(__name__)


@app.command()
def bench(
    bundles: Bundles = None,
    data: Annotated[
        Path | None, typer.Option(help="Manifest; default: the built-in synthetic data set, rendered on first use.")
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Run of the bundles' teacher, to report how much of its retrieval quality they keep; needs torch.",
            autocompletion=completion.runs,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.json, report.html and plots.")] = Path("reports/bench"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Take fewer samples: the same figures with wider intervals.")
    ] = False,
    remember: Annotated[
        bool,
        typer.Option("--remember", help="Use the recommended file and runtime by default on this machine from now on."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure latency, size, memory and retrieval quality of bundles on this machine, beside their teacher's.

    The report recommends the fastest file whose embeddings agree on this machine with those of the bundle's fp32 file.
    """
    from edgeembed import api
    from edgeembed.bench.terminal import print_summary

    result = api.bench(bundles, data=data, teacher=teacher, out=out, quick=quick, remember=remember)
    if as_json:
        print_json(result.report.as_json())
    else:
        print_summary(result.report)
