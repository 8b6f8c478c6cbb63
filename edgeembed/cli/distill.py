"""`edgeembed distill`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.options import Json, KeyOverrides, Resume, RunToResume, TeacherData, TeacherRun
from edgeembed.cli.run_inputs import (
    check_target_store,
    choose_manifest,
    choose_run_folder,
    choose_teacher,
    input_of_resumed_run,
)

if TYPE_CHECKING:
    from edgeembed.eval_json import StudentEvaluation

log = logging.getLogger(__name__)


@app.command()
def distill(
    run: RunToResume = None,
    student: Annotated[
        str | None,
        typer.Option(help="Student alias (vit_b16, mobilenetv4_s, ...) or timm model name; default: the recipe's."),
    ] = None,
    teacher: TeacherRun = None,
    data: TeacherData = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe name, or a .yaml file; default: default.", autocompletion=completion.recipes("student")
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to write; default: runs/STUDENT.")] = None,
    resume: Resume = False,
    overrides: KeyOverrides = None,
    as_json: Json = False,
) -> None:
    """Distil a teacher's embedding space into a small student network. The images need no labels."""
    from edgeembed.config import load_recipe
    from edgeembed.data.manifest import read_manifest
    from edgeembed.run_folder import RunFolder
    from edgeembed.student.aliases import require_student
    from edgeembed.student.recipe import DistillRecipe
    from edgeembed.training.resume import read_run_recipe

    path = choose_run_folder(run, out, resume=resume)
    overrides = [*([f"student.name={student}"] if student else []), *(overrides or [])]
    # A resumed run has its own recipe; the recipe also names the default run folder.
    if path is None or not resume or recipe is not None:
        settings = load_recipe(DistillRecipe, kind="student", name=recipe or "default", overrides=overrides)
        path = path or Path("runs") / settings.student.name
    folder = RunFolder(path=path)
    folder.check_unlocked()
    folder.check_start(resume=resume)
    if resume:
        if recipe is None:
            settings = read_run_recipe(folder, DistillRecipe, overrides)
        teacher = teacher or input_of_resumed_run(folder, "teacher")
        data = data or input_of_resumed_run(folder, "data")
    require_student(settings.student.name, settings.student.weights)
    check_target_store(settings)
    teacher = choose_teacher(teacher)
    manifest = read_manifest(choose_manifest(data, teacher))
    manifest.require_files()

    from edgeembed.student.distill import distill as distill_student  # imports torch: after the other checks

    result = distill_student(settings, manifest, teacher, folder, resume=resume)
    log_scores(result)
    log.info("student: %s", folder.path)
    if as_json:
        print_json(result.model_dump())


def log_scores(evaluation: StudentEvaluation) -> None:
    """Logs the val scores of a finished student, with its own index and with the teacher's."""
    from edgeembed.eval_json import describe_scores

    for index, scores in (evaluation.scores or {}).items():
        text = describe_scores(scores, untrained=evaluation.untrained_map(index))
        retention = evaluation.retention.get(index)
        share = f"; {retention.describe()} of the teacher's mAP" if retention else ""
        log.info("val, %s: %s%s", index, text, share)
    if not evaluation.scores:
        log.info("val: not scored: %s", evaluation.not_scored or "the run was not evaluated")
