"""`edgeembed data`: render, import, join, count and check manifests."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeembed.cli.app import app, print_json
from edgeembed.cli.help import CommandGroup
from edgeembed.cli.options import Json
from edgeembed.cli.tables import print_values

if TYPE_CHECKING:
    from edgeembed.data.manifest import Manifest
    from edgeembed.evaluation import RetrievalProtocol

log = logging.getLogger(__name__)

data_app = typer.Typer(
    cls=CommandGroup,
    help="Manifests (tables of images): render, import, join and balance, count or check.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
app.add_typer(data_app, name="data")

ValShare = Annotated[
    float,
    typer.Option(
        help="Share of the training images of each class to move to val, such as 0.1; at least one image stays."
    ),
]


@data_app.command()
def synth(
    folder: Annotated[Path, typer.Argument(help="Folder for the images and manifest.parquet.")],
    instances: Annotated[int, typer.Option(help="Number of different objects.")] = 100,
    views: Annotated[int, typer.Option(help="Number of images of each object.")] = 24,
    size_px: Annotated[int, typer.Option(help="Side of the images, in pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed renders the same images.")] = 0,
    as_json: Json = False,
) -> None:
    """Render the built-in synthetic data set, which needs no download."""
    from edgeembed.data.default_set import write_default_set
    from edgeembed.files import check_output_folder

    check_output_folder(folder, option="folder")
    manifest = write_default_set(folder, num_instances=instances, num_views=views, size_px=size_px, seed=seed)
    log.info("%d images of %d instances: %s", len(manifest), instances, folder / "manifest.parquet")
    if as_json:
        print_json({"manifest": str(folder / "manifest.parquet"), "images": len(manifest)})


@data_app.command("sources")
def list_sources(as_json: Json = False) -> None:
    """List the data sources that `data import` can read."""
    from edgeembed.data.importers import SOURCES

    if as_json:
        print_json({"sources": [{"name": name, "description": described} for name, (_, described) in SOURCES.items()]})
        return
    for name, (_, described) in SOURCES.items():
        print(f"{name:10} {described}")


# `import` is a keyword of Python, hence the underscore.
@data_app.command("import")
def import_(
    name: Annotated[
        str, typer.Argument(help="Data source, such as folder, table or grocery; `data sources` lists them.")
    ],
    root: Annotated[Path, typer.Argument(help="Folder of the data set, or the file of a table.")],
    out: Annotated[Path, typer.Option(help="Manifest to write, .parquet or .csv.")] = Path("manifest.parquet"),
    path_column: Annotated[str | None, typer.Option(help="Name of a table's column of paths; default: path.")] = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="Column of labels; default: label. Without such a column the images are unlabelled."),
    ] = None,
    domain_column: Annotated[
        str | None,
        typer.Option(help="Column of domains; default: domain. Without one, the folder's name is the domain."),
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(help="Column of splits; default: split. Without one, splits are drawn at random.")
    ] = None,
    role_column: Annotated[
        str | None, typer.Option(help="Column of roles; default: role. Without one, the images have no role.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder that a table's paths are relative to; default: the folder of the table.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="One split for all images of a table: train, val or test.")] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out images of a table that do not exist.")
    ] = False,
    val_share: ValShare = 0.0,
    as_json: Json = False,
) -> None:
    """Import class folders, a table or a public data set into a manifest; no image is opened."""
    from edgeembed.data.importers import TableOptions, import_source
    from edgeembed.data.manifest import check_manifest_name, write_manifest
    from edgeembed.data.sampling import move_to_val
    from edgeembed.data.summary import limitations, repeated_paths, summary
    from edgeembed.files import check_output_file
    from edgeembed.texts import printable

    # The output path is checked before a large data set is listed.
    check_manifest_name(out)
    check_output_file(out)
    columns = {
        "path": path_column,
        "label": label_column,
        "domain": domain_column,
        "split": split_column,
        "role": role_column,
    }
    # Only the columns that the user named: the others have defaults.
    options = TableOptions(
        columns={name: column for name, column in columns.items() if column is not None},
        images=images,
        split=split,
        skip_missing=skip_missing,
    )
    manifest, moved = move_to_val(import_source(name, root, options), val_share)
    write_manifest(out, manifest)
    # Limitations are warnings after writing: the manifest can be used with them.
    repeated = repeated_paths(manifest)
    for sentence in [*limitations(manifest), *([repeated] if repeated else [])]:
        log.warning("%s: %s", printable(str(out)), sentence)
    counts = summary(manifest)
    log.info("%s: %s", printable(str(out)), counts_text(counts))
    # Not only for --json: it logs what evaluation can score.
    planned = plan_splits(manifest)
    if as_json:
        print_json({**counts, "moved_to_val": moved, "evaluation": [one.counts().model_dump() for one in planned]})


@data_app.command()
def prepare(
    manifests: Annotated[list[Path], typer.Argument(help="Manifests to join.")],
    out: Annotated[Path, typer.Option(help="Manifest to write.")],
    cap: Annotated[int, typer.Option(min=1, help="Largest number of images of a class that are trained on.")] = 100,
    minimum: Annotated[
        int, typer.Option("--min", min=1, help="Do not train on classes with fewer training images.")
    ] = 3,
    resample_to: Annotated[
        int,
        typer.Option(min=0, help="Repeat the images of small classes up to this number per epoch; 0: never repeat."),
    ] = 20,
    val_share: ValShare = 0.0,
    seed: Annotated[int, typer.Option(help="Random seed of --val-share, --cap and --resample-to.")] = 0,
    as_json: Json = False,
) -> None:
    """Join manifests and balance their training classes with the column `repeat`; every image stays in the manifest.

    `repeat` is the number of times that a training epoch uses a row; 0: never. Evaluation uses every row once. Values
    of `repeat` in the input are replaced, except that a 0 stays 0.
    """
    from edgeembed.data.manifest import check_manifest_name, read_manifest, write_manifest
    from edgeembed.data.sampling import prepare as balance_classes
    from edgeembed.data.summary import limitations
    from edgeembed.files import check_output_file

    check_manifest_name(out)
    check_output_file(out)
    # The function is renamed on import, as this command has its name.
    prepared, balance = balance_classes(
        [read_manifest(path) for path in manifests],
        cap=cap,
        minimum=minimum,
        resample_to=resample_to,
        val_share=val_share,
        seed=seed,
    )
    write_manifest(out, prepared)
    for sentence in limitations(prepared):
        log.warning("%s: %s", out, sentence)
    counts = dataclasses.asdict(balance)
    log.info("%s: %s", out, counts_text(counts))
    planned = plan_splits(prepared)
    if as_json:
        print_json({**counts, "evaluation": [one.counts().model_dump() for one in planned]})


@data_app.command()
def stats(manifest: Annotated[Path, typer.Argument(help="Manifest.")], as_json: Json = False) -> None:
    """Count the images, classes and visits of a training epoch, and log what evaluation can score.

    The fingerprint changes with any row and with the bytes of any image (above 20,000 images: of a sample of them).
    """
    from edgeembed.data.manifest import read_manifest
    from edgeembed.data.summary import summary

    table = read_manifest(manifest)
    counts = {**summary(table), "fingerprint": table.fingerprint}
    planned = plan_splits(table)
    if as_json:
        print_json({**counts, "evaluation": [one.counts().model_dump() for one in planned]})
    else:
        print_values(counts)


def counts_text(counts: Mapping[str, object]) -> str:
    """Counts in one line: "images 45, splits (train 25, val 10, test 10), moved to val 0"."""
    parts = []
    for key, value in counts.items():
        if isinstance(value, Mapping):  # by split or domain
            value = f"({', '.join(f'{name} {count}' for name, count in value.items())})"
        parts.append(f"{key.replace('_', ' ')} {value}")
    return ", ".join(parts)


def plan_splits(manifest: Manifest) -> list[RetrievalProtocol]:
    """The retrieval protocols of val and test, where the manifest has them; each is logged.

    They are logged as warnings where some queries cannot be scored.
    """
    from edgeembed.evaluation import RetrievalProtocol

    protocols = [RetrievalProtocol.of_split(manifest, split) for split in ("val", "test") if manifest.rows(split).size]
    for protocol in protocols:
        protocol.log_coverage()
    return protocols


@data_app.command()
def check(
    manifest: Annotated[Path, typer.Argument(help="Manifest.")],
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write a manifest without the missing and unreadable images.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of threads that decode images.")] = 2,
    as_json: Json = False,
) -> None:
    """Decode every image, and search for equal images in two splits.

    The exit code is 1 where an image cannot be read or is in two splits; each such image is named.
    """
    from edgeembed.data.checking import drop_unreadable, find_copies, find_unreadable
    from edgeembed.data.manifest import check_manifest_name, read_manifest, write_manifest
    from edgeembed.errors import CheckFailed
    from edgeembed.evaluation import RetrievalProtocol
    from edgeembed.files import check_output_file
    from edgeembed.texts import printable

    if fix is not None:
        check_manifest_name(fix)
        check_output_file(fix, option="--fix")
    table = read_manifest(manifest)
    # First what needs no decoding: what evaluation can score.
    planned = [RetrievalProtocol.of_split(table, split) for split in ("val", "test")]
    for one in planned:
        one.log_coverage()
    unreadable = find_unreadable(table, workers=workers)
    # Unreadable files are left out: files that are damaged in the same way, such as empty ones, are no copies.
    copies = find_copies(table, unreadable=unreadable)
    if not as_json:
        for reason in [*unreadable.values(), *copies.leaks]:
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
        # Written also where leaks are found below, which --fix does not solve.
        kept, left_out = drop_unreadable(table, unreadable)
        write_manifest(fix, kept)
        log.info("%s: %d of %d rows; left out: %s", fix, len(kept), len(table), left_out)
    if as_json:
        print_json(
            {
                "images": len(table),
                "bad": list(unreadable.values()),
                "leaks": copies.leaks,
                "copies": copies.num_copies,
                "other_labels": copies.num_other_labels,
                "evaluation": [one.counts().model_dump() for one in planned],
                "fixed": None if fix is None else str(fix),
            }
        )
    # --fix solves unreadable images; which image of a leak to remove is the user's decision.
    failures = []
    if unreadable and fix is None:
        failures.append(
            f"{len(unreadable)} of {len(set(table.files))} images cannot be read ({table.origin}): replace them, or "
            "leave them out with --fix OUT"
        )
    if copies.leaks:
        failures.append(f"{len(copies.leaks)} images are in two splits: remove each from one")
    if failures:
        raise CheckFailed(f"{manifest}: {'; '.join(failures)}")
    if not as_json:
        print(f"{manifest}: all {len(table) - len(unreadable)} images can be read, and none is in two splits")
