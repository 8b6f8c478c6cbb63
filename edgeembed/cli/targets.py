"""`edgeembed targets ...`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.distill import check_store, manifest_of
from edgeembed.cli.help import CommandGroup
from edgeembed.errors import UserError

log = logging.getLogger(__name__)

targets_app = typer.Typer(
    cls=CommandGroup,
    help="Teacher embeddings stored once for any number of students: build, import, verify, count.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
app.add_typer(targets_app, name="targets")

Teacher = Annotated[
    Path | None, typer.Option(help="Teacher run; default: the latest under runs/.", autocompletion=completion.runs)
]
Data = Annotated[Path | None, typer.Option(help="Manifest; default: the teacher's.")]
Store = Annotated[Path | None, typer.Argument(help="Folder of a store; default: the only one of the teacher.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@targets_app.command()
def build(
    teacher: Teacher = None,
    data: Data = None,
    recipe: Annotated[
        str, typer.Option(help="Distillation recipe, name or .yaml file.", autocompletion=completion.recipes("student"))
    ] = "default",
    views: Annotated[int | None, typer.Option(help="Views of each image; default: the recipe's.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a recipe key, such as image.size_px=160; repeatable."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Store the teacher's embedding of every view that a recipe shows its students; torchrun splits the work."""
    from edgeembed.config import load_recipe
    from edgeembed.data.manifest import read_manifest
    from edgeembed.student.recipe import DistillRecipe

    overrides = [*(set_ or []), *([f"targets.views={views}"] if views else [])]
    settings = load_recipe(DistillRecipe, kind="student", name=recipe, overrides=overrides)
    check_store(settings)
    teacher = chosen_teacher(teacher)
    manifest = read_manifest(data or manifest_of(teacher))
    manifest.require_files()

    from edgeembed.student.targets.build import build_targets  # torch: after all that can be checked without it

    result = build_targets(settings, manifest, teacher)
    log.info("%s: %d targets known, %d new in %.1f s", *(result[k] for k in ("store", "known", "computed", "seconds")))
    if as_json:
        print_json(result)


@targets_app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Embeddings with paths, .parquet or .safetensors.")],
    data: Annotated[Path, typer.Option(help="Manifest of the images.")],
    out: Annotated[Path, typer.Option(help="Folder to make; `distill --teacher` takes it.")],
    model: Annotated[
        str | None, typer.Option(help="Name of the model that computed them; default: the file's name.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Use the embeddings of any other model, of any dimension, as a teacher."""
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
    teacher: Teacher = None,
    data: Data = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Embeddings to compute again; default: 1 %, at least 1,000.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 2,
    as_json: Json = False,
) -> None:
    """Compute a sample of the stored embeddings again, and compare."""
    teacher = chosen_teacher(teacher)
    from edgeembed.data.manifest import read_manifest
    from edgeembed.student.targets.store import open_existing

    manifest = read_manifest(data or manifest_of(teacher))
    store = store or only_store(teacher)
    open_existing(store)

    from edgeembed.student.targets.verify import verify_targets  # torch: after all that can be checked without it

    result = verify_targets(store, manifest, teacher, pairs=pairs, workers=workers)
    if as_json:
        print_json(result)
    else:
        print(f"{result['store']}: {result['compared']} compared, cosine at least {result['cosine_min']:.6f}")


@targets_app.command()
def stats(store: Store = None, teacher: Teacher = None, as_json: Json = False) -> None:
    """Print what a store holds."""
    from edgeembed.student.targets.store import open_existing

    store = store or only_store(chosen_teacher(teacher))
    open_existing(store)

    from edgeembed.student.targets.verify import describe_targets  # torch: after all that can be checked without it

    result = describe_targets(store)
    if as_json:
        print_json(result)
        return
    for name, value in result.items():
        print(f"{name:22} {value:.4f}" if isinstance(value, float) else f"{name:22} {value}")


def chosen_teacher(teacher: Path | None) -> Path:
    from edgeembed.run_folder import latest_run, require_teacher

    if teacher is not None:
        require_teacher(teacher)
    else:
        teacher = latest_run("teacher")
        log.info("teacher: %s (the latest run)", teacher)
    return teacher


def only_store(teacher: Path) -> Path:
    """The one store below a teacher's run."""
    found = sorted(path.parent for path in teacher.glob("targets/*/targets.json"))
    if len(found) != 1:
        known = ", ".join(map(str, found)) or "none; `edgeembed targets build` makes one"
        raise UserError(f"{teacher} has {len(found)} stores of targets ({known}): name the folder of one")
    return found[0]
