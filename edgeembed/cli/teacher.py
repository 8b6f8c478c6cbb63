"""`edgeembed teacher-train` and `teacher-join`."""

from __future__ import annotations

import json
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
    out: Annotated[Path, typer.Option(help="Run folder to write.")] = Path("runs/teacher"),
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Train on from this finished teacher: more images, more classes.",
            autocompletion=completion.runs,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, such as train.epochs=3; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Train the teacher, whose embedding space students learn."""
    from edgeembed.config import load_recipe
    from edgeembed.data.manifest import read_manifest
    from edgeembed.run import RunFolder
    from edgeembed.teacher.recipe import TeacherRecipe
    from edgeembed.teacher.train import train_teacher

    overrides = [f"continue_from={json.dumps(str(from_))}"] if from_ else []
    settings = load_recipe(TeacherRecipe, kind="teacher", name=recipe, overrides=[*overrides, *(set_ or [])])
    result = train_teacher(settings, read_manifest(data), RunFolder(path=out), resume=resume)
    if scores := result.get("scores"):
        log.info("val: mAP %.4f, recall@1 %.4f (%d queries)", scores["map"], scores["recall_at_1"], scores["queries"])
    log.info("teacher: %s", out)
    if as_json:
        print_json(result)


@app.command("teacher-join")
def teacher_join(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Finished teacher runs.")],
    weights: Annotated[
        str | None, typer.Option(help="Comma-separated, one for each run, such as 0.5,1,1; default: 1 each.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Run folder to write.")] = Path("runs/joined"),
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
