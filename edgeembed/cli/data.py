"""`edgeembed data ...`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeembed.cli.app import app, print_json
from edgeembed.cli.help import CommandGroup

if TYPE_CHECKING:
    from edgeembed.data.manifest import Manifest
    from edgeembed.evaluation import RetrievalProtocol

log = logging.getLogger(__name__)

data_app = typer.Typer(
    cls=CommandGroup,
    help="Manifests, the tables of images: render, import, join, count, check.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
app.add_typer(data_app, name="data")

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
ValShare = Annotated[
    float,
    typer.Option(help="Share of each class's training images to move to val, such as 0.1; at least one stays."),
]


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
    from edgeembed.data.default_set import write_embedded
    from edgeembed.files import check_output_folder

    check_output_folder(folder, option="folder")
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
    name: Annotated[str, typer.Argument(help="folder, table, grocery; `data sources` lists them.")],
    root: Annotated[Path, typer.Argument(help="The data set's folder, or a table of images.")],
    out: Annotated[Path, typer.Option(help="Manifest to write, .parquet or .csv.")] = Path("manifest.parquet"),
    path_column: Annotated[str | None, typer.Option(help="Of a table; default: path.")] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Default: label; without one, images are unlabelled.")
    ] = None,
    domain_column: Annotated[str | None, typer.Option(help="Default: domain; without one, the folder's name.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Default: split; without one, splits are drawn.")] = None,
    role_column: Annotated[str | None, typer.Option(help="Default: role; without one, images have none.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="What a table's paths are relative to; default: its folder.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="The split of all images of a table: train, val or test.")] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out a table's images that are gone.")
    ] = False,
    val_share: ValShare = 0.0,
    as_json: Json = False,
) -> None:
    """Read class folders, a table or a public data set into a manifest; no image is opened."""
    from edgeembed.data.importers import TableOptions, import_source
    from edgeembed.data.manifest import check_manifest_name, write_manifest
    from edgeembed.data.remarks import remarks, repeated_paths, summary
    from edgeembed.data.sampling import move_to_val
    from edgeembed.files import check_output_file
    from edgeembed.texts import printable

    check_manifest_name(out)
    check_output_file(out)
    columns = {
        "path": path_column,
        "label": label_column,
        "domain": domain_column,
        "split": split_column,
        "role": role_column,
    }
    options = TableOptions(
        columns={name: column for name, column in columns.items() if column is not None},
        images=images,
        split=split,
        skip_missing=skip_missing,
    )
    manifest, moved = move_to_val(import_source(name, root, options), val_share)
    write_manifest(out, manifest)
    repeated = repeated_paths(manifest)
    for remark in [*remarks(manifest), *([repeated] if repeated else [])]:
        log.warning("%s: %s", printable(str(out)), remark)
    described = summary(manifest)
    log.info("%s: %s", printable(str(out)), counts_text(described))
    planned = plan_splits(manifest)
    if as_json:
        print_json({**described, "moved_to_val": moved, "evaluation": [one.counts().model_dump() for one in planned]})


@data_app.command()
def prepare(
    manifests: Annotated[list[Path], typer.Argument(help="Manifests to join.")],
    out: Annotated[Path, typer.Option(help="Manifest to write.")],
    cap: Annotated[int, typer.Option(min=1, help="Largest number of training images of a class.")] = 100,
    minimum: Annotated[
        int, typer.Option("--min", min=1, help="Leave classes with fewer training images out of training.")
    ] = 3,
    resample_to: Annotated[
        int,
        typer.Option(min=0, help="Repeat images of smaller classes up to this number of visits an epoch; 0: never."),
    ] = 20,
    val_share: ValShare = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the random choices of --val-share, --cap and --resample-to.")] = 0,
    as_json: Json = False,
) -> None:
    """Join manifests and balance their training classes by the column `repeat`; every image stays in the manifest.

    Training visits a row as often in an epoch as `repeat` says, 0 for never. Evaluation sees every row once. A `repeat`
    in the input is replaced, except that a 0 stays 0.
    """
    from edgeembed.data.manifest import check_manifest_name, read_manifest, write_manifest
    from edgeembed.data.remarks import remarks
    from edgeembed.data.sampling import prepare as balance_classes
    from edgeembed.files import check_output_file

    check_manifest_name(out)
    check_output_file(out)
    prepared, balance = balance_classes(
        [read_manifest(path) for path in manifests],
        cap=cap,
        minimum=minimum,
        resample_to=resample_to,
        val_share=val_share,
        seed=seed,
    )
    write_manifest(out, prepared)
    for remark in remarks(prepared):
        log.warning("%s: %s", out, remark)
    figures = dataclasses.asdict(balance)
    log.info("%s: %s", out, counts_text(figures))
    planned = plan_splits(prepared)
    if as_json:
        print_json({**figures, "evaluation": [one.counts().model_dump() for one in planned]})


@data_app.command()
def stats(manifest: Annotated[Path, typer.Argument(help="Manifest.")], as_json: Json = False) -> None:
    """Count images, classes and the visits of a training epoch, and log what evaluation can score.

    The fingerprint changes with any row and with the bytes of any image (above 20,000 images: of a sample of them).
    """
    from edgeembed.data.manifest import read_manifest
    from edgeembed.data.remarks import summary

    table = read_manifest(manifest)
    described = {**summary(table), "fingerprint": table.fingerprint}
    planned = plan_splits(table)
    if as_json:
        print_json({**described, "evaluation": [one.counts().model_dump() for one in planned]})
        return
    for key, value in described.items():
        print(f"{key:12} {value}")


def counts_text(counts: Mapping[str, object]) -> str:
    """For one line of text: "images 45, splits (train 25, val 10, test 10), moved to val 0"."""
    parts = []
    for key, value in counts.items():
        if isinstance(value, Mapping):  # by split or domain, whose names stay as they are
            value = f"({', '.join(f'{name} {count}' for name, count in value.items())})"
        parts.append(f"{key.replace('_', ' ')} {value}")
    return ", ".join(parts)


def plan_splits(manifest: Manifest) -> list[RetrievalProtocol]:
    """The protocols of val and test, where the manifest has them; logged, as warnings where not all can be scored."""
    from edgeembed.evaluation import RetrievalProtocol

    protocols = [RetrievalProtocol.of_split(manifest, split) for split in ("val", "test") if manifest.rows(split).size]
    for protocol in protocols:
        protocol.log_coverage()
    return protocols


@data_app.command()
def check(
    manifest: Annotated[Path, typer.Argument(help="Manifest.")],
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write a manifest without missing and unreadable images.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Decoding threads.")] = 2,
    as_json: Json = False,
) -> None:
    """Decode every image and compare their bytes: exit 1 naming each that cannot be read or is in two splits."""
    from edgeembed.data.checking import find_copies, unreadable, without
    from edgeembed.data.manifest import check_manifest_name, read_manifest, write_manifest
    from edgeembed.errors import CheckFailed
    from edgeembed.evaluation import RetrievalProtocol
    from edgeembed.files import check_output_file
    from edgeembed.texts import printable

    if fix is not None:
        check_manifest_name(fix)
        check_output_file(fix, option="--fix")
    table = read_manifest(manifest)
    planned = [RetrievalProtocol.of_split(table, split) for split in ("val", "test")]
    for one in planned:
        one.log_coverage()
    bad = unreadable(table, workers=workers)
    copies = find_copies(table, bad=bad)
    if not as_json:
        for reason in [*bad.values(), *copies.leaks]:
            print(printable(reason))
    for count, what, first in (
        (copies.num_copies, "images are copies of others in their split", copies.first_copy),
        (
            copies.num_other_labels,
            "rows give an image another label or domain than an earlier row",
            copies.first_other_label,
        ),
    ):
        if count:
            log.warning("%s: %d %s, first %s", manifest, count, what, first)
    if fix is not None:
        kept, left_out = without(table, bad)
        write_manifest(fix, kept)
        log.info("%s: %d of %d rows; left out: %s", fix, len(kept), len(table), left_out)
    if as_json:
        print_json(
            {
                "images": len(table),
                "bad": list(bad.values()),
                "leaks": copies.leaks,
                "copies": copies.num_copies,
                "other_labels": copies.num_other_labels,
                "evaluation": [one.counts().model_dump() for one in planned],
                "fixed": None if fix is None else str(fix),
            }
        )
    failed = []
    if bad and fix is None:
        failed.append(
            f"{len(bad)} of {len(set(table.files))} images cannot be read ({table.origin}): replace them, or leave "
            "them out with --fix OUT"
        )
    if copies.leaks:
        failed.append(f"{len(copies.leaks)} images stand in two splits: remove each from one")
    if failed:
        raise CheckFailed(f"{manifest}: {'; '.join(failed)}")
    if not as_json:
        print(f"{manifest}: all {len(table) - len(bad)} images can be read, and none is in two splits")
