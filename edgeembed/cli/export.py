"""`edgeembed export`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.options import Json, KeyOverrides
from edgeembed.cli.web import choose_pictures, write_page
from edgeembed.errors import UserError
from edgeembed.files import check_output_folder

if TYPE_CHECKING:
    from edgeembed.device.bundle_schema import BundleManifest
    from edgeembed.export.gate import RefusedFile
    from edgeembed.export.recipe import ExportRecipe

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
    pictures = choose_pictures(run, web, web_index, web_precision)
    is_bundle = (run / "bundle.json").is_file()
    if web is not None and is_bundle and not tensorrt:
        site = write_page(run, web, pictures, web_precision)
        if as_json:
            print_json(site)
        return

    from edgeembed.config import load_recipe
    from edgeembed.export.gate import require_nothing_refused
    from edgeembed.export.recipe import ExportRecipe

    settings = load_recipe(ExportRecipe, kind="export", name=recipe, overrides=overrides or ())
    target = out or (run if is_bundle else Path("bundles") / run.resolve().name)
    if is_bundle:
        if not tensorrt:
            raise UserError(f"{run}: is a bundle already: add --tensorrt for engines, --web for a page, or give a run")
        manifest, refused = export_engines(run, target, precision, data, settings, accept_worse)
    else:
        manifest, refused = export_files(
            run,
            target,
            precision=precision,
            recipe=settings,
            data=data,
            licence=licence,
            notes=notes,
            dim=dim,
            accept_worse=accept_worse,
            tensorrt=tensorrt,
        )
    if manifest is not None:
        log.info("bundle: %s (%s)", target, ", ".join(file.path for file in manifest.files))
        if as_json:
            print_json(manifest.model_dump(by_alias=True, mode="json"))
        if web is not None:
            write_page(target, web, pictures, web_precision)
        if accept_worse:
            refused = drop_accepted(refused, manifest)
    require_nothing_refused(refused)


def export_files(
    run: Path, out: Path, *, precision: str, data: Path | None, notes: Path | None, **settings: Any
) -> Exported:
    """Exports a run to ONNX files; `settings` are the other arguments of `export_run`."""
    from edgeembed.export.recipe import parse_precisions
    from edgeembed.run_folder import require_run
    from edgeembed.texts import read_text

    # Every argument is checked before torch is imported and the network is loaded.
    precisions = parse_precisions(precision)
    check_output_folder(out, replaced=True)
    require_run(run)
    text = "" if notes is None else read_text(notes)
    if data is not None:
        from edgeembed.data.manifest import read_manifest

        read_manifest(data)
    from edgeembed.export.export import export_run  # imports torch: after all checks that do not need it

    return export_run(run, out, precisions=precisions, data=data, notes=text, **settings)


def export_engines(
    bundle: Path, out: Path, precision: str, data: Path | None, recipe: ExportRecipe, accept_worse: bool
) -> Exported:
    """Builds engines from the files of a finished bundle, without torch, and compares them on images of a folder."""
    from edgeembed.device.bundle import read_bundle
    from edgeembed.export.tensorrt.engines import add_engines, read_unlabelled_images

    check_output_folder(out, replaced=True)
    if data is None:
        raise UserError(f"{bundle}: engines are compared with its files on images: give a folder of them with --data")
    spec = read_bundle(bundle).input
    images = read_unlabelled_images(data, (spec.height, spec.width))
    names = [name.strip() for name in precision.split(",") if name.strip()]
    return add_engines(bundle, out, images, recipe=recipe, precisions=names, accept_worse=accept_worse)


def drop_accepted(refused: list[RefusedFile], manifest: BundleManifest) -> list[RefusedFile]:
    """The refused files that were not written even with --accept-worse; the written ones are logged."""
    written = {file.path for file in manifest.files}
    for item in refused:
        log.warning("%s is worse than promised, and accepted: %s", item.precision, ", ".join(item.reasons))
    return [item for item in refused if item.path not in written]
