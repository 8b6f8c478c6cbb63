"""`edgeembed export`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.web import make_page, page_pictures
from edgeembed.errors import UserError
from edgeembed.files import check_output_folder

if TYPE_CHECKING:
    from edgeembed.device.bundle import BundleManifest
    from edgeembed.export.gate import RefusedFile
    from edgeembed.export.recipe import ExportRecipe

    Exported = tuple[BundleManifest | None, list[RefusedFile]]

log = logging.getLogger(__name__)


@app.command()
def export(
    run: Annotated[
        Path,
        typer.Argument(
            help="A finished student or teacher run; with --tensorrt or --web a bundle too.",
            autocompletion=completion.runs,
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Bundle folder; default: bundles/RUN, or the bundle itself.")] = None,
    precision: Annotated[str, typer.Option(help="Comma-separated: fp32, fp16, int8.")] = "fp32,int8",
    data: Annotated[
        Path | None, typer.Option(help="Manifest of images to calibrate and compare on; default: the run's.")
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="Thresholds and calibration; a name or a .yaml file.", autocompletion=completion.recipes("export")
        ),
    ] = "default",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, repeatable.")
    ] = None,
    accept_worse: Annotated[
        bool,
        typer.Option(
            "--accept-worse",
            help="Write files that fail their gate too, marked so; int8 then returns no operator to float.",
        ),
    ] = False,
    tensorrt: Annotated[
        bool, typer.Option("--tensorrt", help="Build engines for this GPU too, of the files that passed.")
    ] = False,
    web: Annotated[
        Path | None, typer.Option(help="Folder for a web page that searches on the visitor's device.")
    ] = None,
    web_index: Annotated[
        Path | None,
        typer.Option(help="Images that the page searches: a folder or manifest; default: the run's data."),
    ] = None,
    web_precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 or int8 of the page's model; default: int8 where there is one.")
    ] = None,
    dim: Annotated[int | None, typer.Option(min=1, help="Embedding dimensions; default: all, usually 64.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, for the manifest and the card.")] = None,
    notes: Annotated[
        Path | None, typer.Option(help="Markdown for the model card: data, held-out quality, limits.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print bundle.json on stdout.")] = False,
) -> None:
    """Export a run as ONNX files, and TensorRT engines, each run and compared on real images before it is written."""
    if web is None and (web_index is not None or web_precision is not None):
        raise UserError("--web-index and --web-precision are of a web page: add --web FOLDER")
    if web is not None:
        check_output_folder(web, option="--web", replaced=True)
    pictures = [] if web is None else page_pictures(run, web, web_index)
    if web is not None and not tensorrt and (run / "bundle.json").is_file():
        site = make_page(run, web, pictures, web_precision)
        if as_json:
            print_json(site)
        return

    from edgeembed.config import load_recipe
    from edgeembed.export.gate import require_nothing_refused
    from edgeembed.export.recipe import ExportRecipe, parse_precisions
    from edgeembed.run_folder import require_run

    settings = load_recipe(ExportRecipe, kind="export", name=recipe, overrides=overrides or ())
    if (run / "bundle.json").is_file():
        if not tensorrt:
            raise UserError(
                f"{run}: is a bundle already: --tensorrt builds engines of its files, --web a page; a run is exported"
            )
        target = out or run
        check_output_folder(target, replaced=True)
        manifest, refused = export_engines(run, target, precision, data, settings, accept_worse)
    else:
        precisions = parse_precisions(precision)
        target = out or Path("bundles") / run.resolve().name
        check_output_folder(target, replaced=True)
        require_run(run)  # before torch, which takes seconds
        manifest, refused = export_files(
            run,
            target,
            precisions=precisions,
            recipe=settings,
            data=data,
            licence=licence,
            notes=read_notes(notes),
            dim=dim,
            accept_worse=accept_worse,
            tensorrt=tensorrt,
        )
    if manifest is not None:
        log.info("bundle: %s (%s)", target, ", ".join(file.path for file in manifest.files))
        if as_json:
            print_json(manifest.model_dump(by_alias=True, mode="json"))
        if web is not None:
            make_page(target, web, pictures, web_precision)
    if accept_worse and manifest is not None:
        written = {file.path for file in manifest.files}
        for item in refused:
            log.warning("%s is worse than promised, and accepted: %s", item.precision, ", ".join(item.reasons))
        refused = [item for item in refused if item.path not in written]
    require_nothing_refused(refused)


def export_files(run: Path, out: Path, *, data: Path | None, **settings: Any) -> Exported:
    """The files of a run."""
    if data is not None:
        from edgeembed.data.manifest import read_manifest

        read_manifest(data)
    from edgeembed.export.export import export_run  # torch: after all that can be checked without it

    return export_run(run, out, data=data, **settings)


def export_engines(
    bundle: Path, out: Path, precision: str, data: Path | None, recipe: ExportRecipe, accept_worse: bool
) -> Exported:
    """Engines of a finished bundle's files, without torch: compared on the images of a folder."""
    from edgeembed.device.bundle import read_bundle
    from edgeembed.export.tensorrt.engines import add_engines, read_unlabelled_images

    if data is None:
        raise UserError(f"{bundle}: engines are compared with its files on images: give a folder of them with --data")
    spec = read_bundle(bundle).input
    images = read_unlabelled_images(data, (spec.height, spec.width))
    names = [name.strip() for name in precision.split(",") if name.strip()]
    return add_engines(bundle, out, images, recipe=recipe, precisions=names, accept_worse=accept_worse)


def read_notes(path: Path | None) -> str:
    from edgeembed.texts import read_text

    return "" if path is None else read_text(path)
