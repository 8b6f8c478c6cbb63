"""`edgeembed export`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from edgeembed.cli.app import app, print_json

log = logging.getLogger(__name__)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished student or teacher run.")],
    out: Annotated[Path | None, typer.Option(help="Bundle folder; default: bundles/RUN.")] = None,
    precision: Annotated[str, typer.Option(help="Comma-separated: fp32, fp16, int8.")] = "fp32,int8",
    data: Annotated[Path | None, typer.Option(help="Manifest to calibrate and judge on; default: the run's.")] = None,
    dim: Annotated[int | None, typer.Option(min=1, help="Numbers an image; default: all, usually 64.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, for the manifest and the card.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print bundle.json on stdout.")] = False,
) -> None:
    """Export a run as ONNX files that were run and compared on real images."""
    from edgeembed.export.export import export_run, require_nothing_refused
    from edgeembed.export.precision import parse_precisions

    precisions = parse_precisions(precision)
    target = out or Path("bundles") / run.name
    manifest, refused = export_run(run, target, precisions=precisions, data=data, licence=licence, dim=dim)
    if manifest is not None:
        log.info("bundle: %s (%s)", target, ", ".join(file.path for file in manifest.files))
        if as_json:
            print_json(manifest.model_dump(by_alias=True, mode="json"))
    require_nothing_refused(refused)
