"""`edgeembed distill`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.teacher import Resume, RunToResume, chosen_folder
from edgeembed.errors import UserError

if TYPE_CHECKING:
    from edgeembed.student.recipe import DistillRecipe

log = logging.getLogger(__name__)


@app.command()
def distill(
    run: RunToResume = None,
    student: Annotated[
        str | None, typer.Option(help="Alias (vit_b16, mobilenetv4_s, ...) or timm name; default: the recipe's.")
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Finished teacher run, or what `targets import` wrote; default: the latest run under runs/.",
            autocompletion=completion.runs,
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Manifest; default: the teacher's.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe name, or a .yaml file; default: default.", autocompletion=completion.recipes("student")
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to write; default: runs/STUDENT.")] = None,
    resume: Resume = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, such as train.epochs=3; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Distil a teacher's embedding space into a small student; images need no labels."""
    from edgeembed.chance import describe_scores
    from edgeembed.config import load_recipe
    from edgeembed.data.manifest import read_manifest
    from edgeembed.intervals import share_text
    from edgeembed.run_folder import RunFolder, latest_run, require_teacher
    from edgeembed.student.names import require_student
    from edgeembed.student.recipe import DistillRecipe
    from edgeembed.training.resume import read_run_recipe, recorded_input

    folder = chosen_folder(run, out, resume=resume)
    overrides = [*([f"student.name={student}"] if student else []), *(set_ or [])]
    if folder is None or not resume or recipe is not None:
        settings = load_recipe(DistillRecipe, kind="student", name=recipe or "default", overrides=overrides)
        folder = folder or Path("runs") / settings.student.name
    run_folder = RunFolder(path=folder)
    run_folder.check_unlocked()
    run_folder.check_start(resume=resume)
    if resume:
        if recipe is None:
            settings = read_run_recipe(run_folder, DistillRecipe, overrides)
        teacher = teacher or known(recorded_input(run_folder, "teacher"), "--teacher")
        data = data or known(recorded_input(run_folder, "data"), "--data")
    require_student(settings.student.name, settings.student.weights)
    check_store(settings)
    if teacher is not None:
        require_teacher(teacher)
    else:
        teacher = latest_run("teacher")
        log.info("teacher: %s (the latest run)", teacher)
    if data is None:
        data = manifest_of(teacher)
        log.info("data: %s (the teacher's)", data)
    manifest = read_manifest(data)
    manifest.require_files()

    from edgeembed.student.distill import distill as distill_student  # torch: after all that can be checked without it

    result = distill_student(settings, manifest, teacher, run_folder, resume=resume)
    untrained = result.get("untrained") or {}
    for kind, scores in (result.get("scores") or {}).items():
        text = describe_scores(scores, untrained=(untrained.get(kind) or {}).get("map"))
        kept = (result.get("retention") or {}).get(kind)
        share = f"; {share_text(kept['value'], kept['ci95'])} of the teacher's mAP" if kept else ""
        log.info("val, %s: %s%s", kind, text, share)
    if not result.get("scores"):
        log.info("val: not scored: %s", result.get("not_scored") or "the run was not evaluated")
    log.info("student: %s", folder)
    if as_json:
        print_json(result)


def check_store(recipe: DistillRecipe) -> None:
    """Raises UserError where targets cannot be stored in the folder that `targets.store` names."""
    from edgeembed.files import check_output_folder

    store = recipe.targets.store
    if store not in ("auto", "none") and not os.path.isfile(os.path.join(store, "targets.json")):  # else only read
        check_output_folder(Path(store), option="targets.store")


def known(path: Path | None, option: str) -> Path | None:
    """The teacher or manifest that a resumed run began with; None where the run did not record it.

    Raises UserError where it no longer exists.
    """
    if path is not None:
        if not path.exists():
            raise UserError(f"{path}: no longer exists, and the run began with it: name it with {option}")
        log.info("%s %s (the run's)", option, path)
    return path


def manifest_of(run: Path) -> Path:
    """The manifest that a run was trained on."""
    from edgeembed.files import read_json

    if (run / "source.json").is_file():  # imported embeddings
        return Path(str(read_json(run / "source.json").get("manifest")))
    facts = run / "model.json"
    if not facts.is_file():
        raise UserError(
            f"{run}: holds no finished teacher run: run `edgeembed teacher-train`, or name another --teacher"
        )
    manifest = (read_json(facts).get("data") or {}).get("manifest")
    if not manifest or not Path(manifest).is_file():
        raise UserError(f"{run}: its data ({manifest}) no longer exists: give a manifest with --data")
    return Path(manifest)
