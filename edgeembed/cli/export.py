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
    recipe: Annotated[str, typer.Option(help="Thresholds and calibration; a name or a .yaml file.")] = "default",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, repeatable.")
    ] = None,
    accept_worse: Annotated[
        bool, typer.Option("--accept-worse", help="Write files that fail their gate, marked so; int8 is not mended.")
    ] = False,
    dim: Annotated[int | None, typer.Option(min=1, help="Numbers an image; default: all, usually 64.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, for the manifest and the card.")] = None,
    notes: Annotated[
        Path | None, typer.Option(help="Markdown for the model card: data, held-out quality, limits.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print bundle.json on stdout.")] = False,
) -> None:
    """Export a run as ONNX files that were run and compared on real images."""
    from edgeembed.config import load_recipe
    from edgeembed.export.export import export_run, require_nothing_refused
    from edgeembed.export.precision import parse_precisions
    from edgeembed.export.recipe import ExportRecipe

    precisions = parse_precisions(precision)
    target = out or Path("bundles") / run.name
    manifest, refused = export_run(
        run,
        target,
        precisions=precisions,
        recipe=load_recipe(ExportRecipe, kind="export", name=recipe, overrides=overrides or ()),
        data=data,
        licence=licence,
        notes=read_notes(notes),
        dim=dim,
        accept_worse=accept_worse,
    )
    if manifest is not None:
        log.info("bundle: %s (%s)", target, ", ".join(file.path for file in manifest.files))
        if as_json:
            print_json(manifest.model_dump(by_alias=True, mode="json"))
    if accept_worse and manifest is not None:
        for item in refused:
            log.warning("%s is worse than promised, and accepted: %s", item.precision, ", ".join(item.reasons))
        refused = [item for item in refused if item.precision not in {file.precision for file in manifest.files}]
    require_nothing_refused(refused)


def read_notes(path: Path | None) -> str:
    from edgeembed.errors import UserError

    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--notes {path}: cannot be read as text ({error})") from None
