"""`edgeembed teacher-train` and `edgeembed teacher-join`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.options import Json, KeyOverrides, Resume, RunToResume
from edgeembed.errors import UserError
from edgeembed.run_inputs import choose_run_folder

log = logging.getLogger(__name__)


@app.command("teacher-train")
def teacher_train(
    run: RunToResume = None,
    data: Annotated[Path | None, typer.Option(help="Manifest, .parquet or .csv; required for a new run.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe name, or a .yaml file; default: vit_h14.", autocompletion=completion.recipes("teacher")
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to write; default: runs/teacher.")] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Start from the weights of this finished teacher run (warm start), to add images or classes.",
            autocompletion=completion.runs,
        ),
    ] = None,
    resume: Resume = False,
    overrides: KeyOverrides = None,
    as_json: Json = False,
) -> None:
    """Train a teacher network, whose embedding space students learn."""
    from edgeembed import api
    from edgeembed.eval_json import describe_scores

    result = api.train_teacher(
        data,
        recipe=recipe,
        out=choose_run_folder(run, out, resume=resume),
        warm_start=from_,
        resume=resume,
        overrides=overrides or (),
    )
    evaluation = result.evaluation
    if evaluation.scores is not None:
        log.info("val: %s", describe_scores(evaluation.scores, untrained=None))
    else:
        log.info("val: not scored: %s", evaluation.not_scored or "the run was not evaluated")
    log.info("teacher: %s", result.run)
    if as_json:
        print_json(evaluation.model_dump())


@app.command("teacher-join")
def teacher_join(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Finished teacher runs.")],
    weights: Annotated[
        str | None,
        typer.Option(help="Comma-separated weights, one for each run, such as 0.5,1,1; default: 1 for each."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Run folder to write.")] = Path("runs/joined"),
    as_json: Json = False,
) -> None:
    """Combine teachers into an ensemble whose embedding is the concatenation of their weighted embeddings."""
    from edgeembed.files import check_output_folder
    from edgeembed.run_folder import RunFolder

    check_output_folder(out)
    try:
        numbers = [float(text) for text in weights.split(",")] if weights else [1.0] * len(runs)
    except ValueError:
        raise UserError(f"--weights {weights!r}: expected numbers, for example 0.5,1,1") from None

    from edgeembed.teacher.ensemble import build_ensemble  # imports torch

    facts = build_ensemble(runs, numbers, RunFolder(path=out))
    log.info("ensemble: %s (%d dimensions, space %s)", out, facts["embedding"]["dim"], facts["space_id"])
    if as_json:
        print_json(facts)
