"""`edgeembed export`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.options import Json, KeyOverrides
from edgeembed.cli.web import choose_pictures, write_page

if TYPE_CHECKING:
    from edgeembed.device.bundle_schema import BundleManifest
    from edgeembed.export.gate import RefusedFile

    Exported = tuple[BundleManifest | None, list[RefusedFile]]

log = logging.getLogger(__name__)


@app.command()
def export(
    run: Annotated[
        Path,
        typer.Argument(
            help="A finished student or teacher run; with --tensorrt or --web also a bundle.",
            autocompletion=completion.runs,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Bundle folder to write; default: bundles/RUN, or the given bundle itself.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Comma-separated: fp32, fp16, int8.")] = "fp32,int8",
    data: Annotated[
        Path | None,
        typer.Option(help="Manifest of the images for calibration and comparison; default: the run's manifest."),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="Export recipe (gate thresholds, calibration, engines): its name, or a .yaml file.",
            autocompletion=completion.recipes("export"),
        ),
    ] = "default",
    overrides: KeyOverrides = None,
    accept_worse: Annotated[
        bool,
        typer.Option(
            "--accept-worse",
            help="Also write files that fail their gate, marked as such. All int8 operators then stay int8.",
        ),
    ] = False,
    tensorrt: Annotated[
        bool, typer.Option("--tensorrt", help="Also build TensorRT engines for this GPU from the files that passed.")
    ] = False,
    web: Annotated[
        Path | None, typer.Option(help="Folder for a web page that searches on the visitor's device.")
    ] = None,
    web_index: Annotated[
        Path | None,
        typer.Option(help="Images that the page searches: a folder or a manifest; default: the run's manifest."),
    ] = None,
    web_precision: Annotated[
        str | None,
        typer.Option(help="Precision of the page's model: fp32, fp16 or int8; default: int8 if it passed its gate."),
    ] = None,
    dim: Annotated[
        int | None, typer.Option(min=1, help="Number of leading embedding dimensions to keep; default: all.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the weights, for bundle.json and the model card.")
    ] = None,
    notes: Annotated[
        Path | None, typer.Option(help="Markdown file for the model card: data, held-out quality, limits.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a run as ONNX files and TensorRT engines; each file is run and compared with the network on real images.

    A file that fails its gate is not written, and the exit code is 1.
    """
    # First, so that a wrong option of the page is an error before minutes of export.
    pictures = choose_pictures(run, web, web_index, web_precision)
    # RUN is a finished bundle: only the page is built. With --tensorrt, engines are added to it first.
    if web is not None and (run / "bundle.json").is_file() and not tensorrt:
        site = write_page(run, web, pictures, web_precision)
        if as_json:
            print_json(site)
        return

    # Imported here, because an export needs torch and a page alone does not.
    from edgeembed.api import export_unless_refused
    from edgeembed.export.gate import require_nothing_refused
    from edgeembed.texts import read_text

    target, manifest, refused = export_unless_refused(
        run,
        out=out,
        precision=precision,
        data=data,
        recipe=recipe,
        overrides=overrides or (),
        dim=dim,
        licence=licence,
        notes="" if notes is None else read_text(notes),
        accept_worse=accept_worse,
        tensorrt=tensorrt,
    )
    # None where fp32 was refused: then there is no bundle.
    if manifest is not None:
        if as_json:
            print_json(manifest.model_dump(by_alias=True, mode="json"))
        if web is not None:
            write_page(target, web, pictures, web_precision)
    # Last: the files that passed are written all the same.
    require_nothing_refused(refused)
