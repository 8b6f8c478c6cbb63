"""`edgeembed data ...`."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Annotated

import typer

from edgeembed.cli.app import app, print_json
from edgeembed.cli.help import CommandGroup

log = logging.getLogger(__name__)

data_app = typer.Typer(
    cls=CommandGroup,
    help="Manifests, the tables of images: render, import, join, count, check.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
app.add_typer(data_app, name="data")

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@data_app.command()
def synth(
    folder: Annotated[Path, typer.Argument(help="Where the images and manifest.parquet go.")],
    instances: Annotated[int, typer.Option(help="Number of distinct objects.")] = 100,
    views: Annotated[int, typer.Option(help="Images of each object.")] = 24,
    size_px: Annotated[int, typer.Option(help="Side of the images, in pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="Seed; the same one renders the same images.")] = 0,
    as_json: Json = False,
) -> None:
    """Render the embedded default data set."""
    from edgeembed.data.embedded import write_embedded

    manifest = write_embedded(folder, num_instances=instances, num_views=views, size_px=size_px, seed=seed)
    log.info("%d images of %d instances: %s", len(manifest), instances, folder / "manifest.parquet")
    if as_json:
        print_json({"manifest": str(folder / "manifest.parquet"), "images": len(manifest)})


@data_app.command("sources")
def list_sources(as_json: Json = False) -> None:
    """List what `data import` reads."""
    from edgeembed.data.importers import SOURCES

    if as_json:
        print_json({"sources": [{"name": name, "description": described} for name, (_, described) in SOURCES.items()]})
        return
    for name, (_, described) in SOURCES.items():
        print(f"{name:10} {described}")


@data_app.command("import")
def import_(
    name: Annotated[str, typer.Argument(help="folder, csv, grocery; `data sources` lists them.")],
    root: Annotated[Path, typer.Argument(help="Where the data set lies.")],
    out: Annotated[Path, typer.Option(help="Manifest to write, .parquet or .csv.")] = Path("manifest.parquet"),
    as_json: Json = False,
) -> None:
    """Read a data set's own layout into a manifest."""
    from edgeembed.data.importers import import_source
    from edgeembed.data.manifest import summary, write_manifest

    manifest = import_source(name, root)
    manifest.require_files()
    write_manifest(out, manifest)
    described = summary(manifest)
    log.info("%s: %s", out, described)
    if as_json:
        print_json(described)


@data_app.command()
def prepare(
    manifests: Annotated[list[Path], typer.Argument(help="Manifests to join.")],
    out: Annotated[Path, typer.Option(help="Manifest to write.")],
    cap: Annotated[int, typer.Option(min=1, help="Most training images kept of a class.")] = 100,
    minimum: Annotated[int, typer.Option("--min", min=1, help="Drop training classes with fewer images.")] = 3,
    resample_to: Annotated[
        int, typer.Option(min=0, help="Repeat the images of smaller classes up to so many a class; 0: never.")
    ] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the draw under --cap.")] = 0,
    as_json: Json = False,
) -> None:
    """Join manifests and balance their training classes."""
    from edgeembed.data.manifest import read_manifest, write_manifest
    from edgeembed.data.sampling import prepare as balance_classes

    prepared, balance = balance_classes(
        [read_manifest(path) for path in manifests], cap=cap, minimum=minimum, resample_to=resample_to, seed=seed
    )
    write_manifest(out, prepared)
    figures = dataclasses.asdict(balance)
    log.info("%s: %s", out, ", ".join(f"{key} {value}" for key, value in figures.items()))
    if as_json:
        print_json(figures)


@data_app.command()
def stats(manifest: Annotated[Path, typer.Argument(help="Manifest.")], as_json: Json = False) -> None:
    """Count images and classes by domain and split."""
    from edgeembed.data.manifest import read_manifest, summary

    described = summary(read_manifest(manifest))
    if as_json:
        print_json(described)
        return
    for key, value in described.items():
        print(f"{key:12} {value}")


@data_app.command()
def check(
    manifest: Annotated[Path, typer.Argument(help="Manifest.")],
    workers: Annotated[int, typer.Option(min=1, help="Decoding threads.")] = 2,
    as_json: Json = False,
) -> None:
    """Decode every image; exit 1 naming each one that cannot be."""
    from edgeembed.cli.inputs import printable
    from edgeembed.data.checking import undecodable
    from edgeembed.data.manifest import read_manifest
    from edgeembed.errors import CheckFailed

    table = read_manifest(manifest)
    bad = undecodable(table, workers=workers)
    if as_json:
        print_json({"images": len(table), "bad": bad})
    else:
        for reason in bad:
            print(printable(reason))
    if bad:
        raise CheckFailed(f"{manifest}: {len(bad)} of {len(table)} images cannot be read: remove or replace them")
    if not as_json:
        print(f"{manifest}: all {len(table)} images can be read")
