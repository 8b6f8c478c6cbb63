"""`edgeembed distill`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.options import AnyTeacher, Json, KeyOverrides, Resume, RunToResume, TeacherData
from edgeembed.run_inputs import (
    choose_run_folder,
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
    teacher: AnyTeacher = None,
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
    from edgeembed import api

    result = api.distill(
        student,
        teacher=teacher,
        data=data,
        recipe=recipe,
        out=choose_run_folder(run, out, resume=resume),
        resume=resume,
        overrides=overrides or (),
    )
    log_scores(result.evaluation)
    log.info("student: %s", result.run)
    if as_json:
        print_json(result.evaluation.model_dump())


def log_scores(evaluation: StudentEvaluation) -> None:
    """Logs the val scores of a finished student, with its own index and with the teacher's."""
    from edgeembed.eval_json import describe_scores
    from edgeembed.size_ratio import kept_text

    for index, scores in (evaluation.scores or {}).items():
        text = describe_scores(scores, untrained=evaluation.untrained_map(index))
        # None where the teacher was not scored.
        retention = evaluation.retention.get(index)
        share = f"; {kept_text(retention.describe(), evaluation.size_ratio)}" if retention else ""
        log.info("val, %s: %s%s", index, text, share)
    if not evaluation.scores:
        log.info("val: not scored: %s", evaluation.not_scored or "the run was not evaluated")
