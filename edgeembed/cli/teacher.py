"""`edgeembed teacher-train` and `teacher-join`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json

log = logging.getLogger(__name__)


@app.command("teacher-train")
def teacher_train(
    data: Annotated[Path, typer.Option(help="Manifest, .parquet or .csv.")],
    recipe: Annotated[
        str, typer.Option(help="Recipe name, or a .yaml file.", autocompletion=completion.recipes("teacher"))
    ] = "vit_h14",
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/teacher"),
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Train on from this finished teacher: more images, more classes.",
            autocompletion=completion.runs,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key: train.epochs=3.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Train the teacher, whose embedding space students learn."""
    from edgeembed.chance import describe_scores
    from edgeembed.config import load_recipe
    from edgeembed.data.manifest import read_manifest
    from edgeembed.run import RunFolder
    from edgeembed.teacher.names import require_backbone
    from edgeembed.teacher.recipe import TeacherRecipe

    overrides = [f"continue_from={from_}"] if from_ else []
    settings = load_recipe(TeacherRecipe, kind="teacher", name=recipe, overrides=[*overrides, *(set_ or [])])
    require_backbone(settings.backbone.name, settings.backbone.weights)
    manifest = read_manifest(data)

    from edgeembed.teacher.train import train_teacher  # torch: after all that can be checked without it

    result = train_teacher(settings, manifest, RunFolder(path=out), resume=resume)
    if scores := result.get("scores"):
        log.info("val: %s", describe_scores(scores, untrained=None))
    else:
        log.info("val: not scored: %s", result.get("not_scored") or "the run was not evaluated")
    log.info("teacher: %s", out)
    if as_json:
        print_json(result)


@app.command("teacher-join")
def teacher_join(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished teacher runs.")],
    weights: Annotated[str | None, typer.Option(help="One a run: 0.5,1,1; default: 1 each.")] = None,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/joined"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Join teachers into one: their weighted embeddings, one after the other."""
    from edgeembed.errors import UserError
    from edgeembed.run import RunFolder
    from edgeembed.teacher.join import join_teachers

    try:
        numbers = [float(text) for text in weights.split(",")] if weights else [1.0] * len(runs)
    except ValueError:
        raise UserError(f"--weights {weights!r}: expected numbers, for example 0.5,1,1") from None
    facts = join_teachers(runs, numbers, RunFolder(path=out))
    log.info("joined teacher: %s (%d numbers an image, space %s)", out, facts["embedding"]["dim"], facts["space_id"])
    if as_json:
        print_json(facts)
