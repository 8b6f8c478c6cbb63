"""`edgeembed targets`: teacher embeddings that are stored once for any number of students."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.help import CommandGroup
from edgeembed.cli.options import Json, KeyOverrides, TeacherData, TeacherRun
from edgeembed.cli.tables import print_values
from edgeembed.run_inputs import check_target_store, choose_manifest, choose_target_store, choose_teacher

log = logging.getLogger(__name__)

targets_app = typer.Typer(
    cls=CommandGroup,
    help="Teacher embeddings, stored once for any number of students: build, import, verify or describe a store.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
app.add_typer(targets_app, name="targets")

Store = Annotated[
    Path | None, typer.Argument(help="Folder of a target store; default: the only one in the teacher's run folder.")
]


@targets_app.command()
def build(
    teacher: TeacherRun = None,
    data: TeacherData = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="Distillation recipe: its name, or a .yaml file.", autocompletion=completion.recipes("student")
        ),
    ] = "default",
    views: Annotated[int | None, typer.Option(help="Views of each image; default: the recipe's.")] = None,
    overrides: KeyOverrides = None,
    as_json: Json = False,
) -> None:
    """Compute and store the teacher's embedding of every view that a recipe uses; torchrun splits the work."""
    from edgeembed.config import load_recipe
    from edgeembed.data.manifest import read_manifest
    from edgeembed.student.recipe import DistillRecipe

    # --views is short for a key of the recipe, and wins over --set.
    overrides = [*(overrides or []), *([f"targets.views={views}"] if views else [])]
    settings = load_recipe(DistillRecipe, kind="student", name=recipe, overrides=overrides)
    check_target_store(settings)
    teacher = choose_teacher(teacher)
    manifest = read_manifest(data or choose_manifest(teacher))
    manifest.require_files()

    from edgeembed.student.targets.build import build_targets  # imports torch: after all checks that do not need it

    result = build_targets(settings, manifest, teacher)
    log.info("%s: %d targets stored, %d new in %.1f s", *(result[k] for k in ("store", "known", "computed", "seconds")))
    if as_json:
        print_json(result)


@targets_app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Embeddings with image paths, .parquet or .safetensors.")],
    data: Annotated[Path, typer.Option(help="Manifest of the images.")],
    out: Annotated[Path, typer.Option(help="Folder to write; `distill --teacher` takes it as a teacher.")],
    model: Annotated[
        str | None, typer.Option(help="Name of the model that computed the embeddings; default: the file's name.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Import embeddings that any other model computed, of any dimension, to use them as a teacher."""
    from edgeembed.data.manifest import read_manifest
    from edgeembed.files import check_output_folder

    check_output_folder(out)
    from edgeembed.student.targets.imported import import_targets

    result = import_targets(file, read_manifest(data), out, model=model)
    log.info(
        "%s: %d of %d training images, %d dimensions, space %s",
        *(result[key] for key in ("store", "known", "images", "dim", "space_id")),
    )
    if as_json:
        print_json(result)


@targets_app.command()
def verify(
    store: Store = None,
    teacher: TeacherRun = None,
    data: TeacherData = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Embeddings to recompute; default: 1 % of them, at least 1,000.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 2,
    as_json: Json = False,
) -> None:
    """Recompute a sample of the stored embeddings with the teacher, and compare."""
    teacher = choose_teacher(teacher)
    from edgeembed.data.manifest import read_manifest
    from edgeembed.student.targets.store import open_existing

    manifest = read_manifest(data or choose_manifest(teacher))
    store = choose_target_store(store, teacher)
    open_existing(store)

    from edgeembed.student.targets.verify import verify_targets  # imports torch: after all checks that do not need it

    result = verify_targets(store, manifest, teacher, pairs=pairs, workers=workers)
    if as_json:
        print_json(result)
    else:
        print(f"{result['store']}: {result['compared']} compared, cosine at least {result['cosine_min']:.6f}")


@targets_app.command()
def stats(store: Store = None, teacher: TeacherRun = None, as_json: Json = False) -> None:
    """Print what a target store contains: embeddings, views, dimensions and spread."""
    from edgeembed.student.targets.store import open_existing

    store = choose_target_store(store, teacher)
    open_existing(store)

    from edgeembed.student.targets.verify import describe_targets  # imports torch: after the other checks

    result = describe_targets(store)
    if as_json:
        print_json(result)
    else:
        print_values(result)
