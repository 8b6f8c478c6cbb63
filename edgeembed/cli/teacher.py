"""`edgeembed teacher-train`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from edgeembed.cli.app import app, print_json

log = logging.getLogger(__name__)


@app.command("teacher-train")
def teacher_train(
    data: Annotated[Path, typer.Option(help="Manifest, .parquet or .csv.")],
    recipe: Annotated[str, typer.Option(help="Recipe name, or a .yaml file.")] = "vit_h14",
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/teacher"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key: train.epochs=3.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Train the teacher, whose embedding space students learn."""
    from edgeembed.config import load_recipe
    from edgeembed.data.manifest import read_manifest
    from edgeembed.run import RunFolder
    from edgeembed.teacher.recipe import TeacherRecipe
    from edgeembed.teacher.train import train_teacher

    settings = load_recipe(TeacherRecipe, kind="teacher", name=recipe, overrides=set_ or [])
    result = train_teacher(settings, read_manifest(data), RunFolder(path=out), resume=resume)
    if scores := result.get("scores"):
        log.info("val: mAP %.4f, recall@1 %.4f (%d queries)", scores["map"], scores["recall_at_1"], scores["queries"])
    log.info("teacher: %s", out)
    if as_json:
        print_json(result)
