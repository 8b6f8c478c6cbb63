"""`edgeembed distill`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.errors import UserError

log = logging.getLogger(__name__)


@app.command()
def distill(
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
        str, typer.Option(help="Recipe name, or a .yaml file.", autocompletion=completion.recipes("student"))
    ] = "default",
    out: Annotated[Path | None, typer.Option(help="Run folder to write; default: runs/STUDENT.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, such as train.epochs=3; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Distil a teacher's embedding space into a small student; images need no labels."""
    from edgeembed.run import require_teacher

    if teacher is not None:
        require_teacher(teacher)  # before torch, which takes seconds
    from edgeembed.config import load_recipe
    from edgeembed.data.manifest import read_manifest
    from edgeembed.run import RunFolder, latest_run
    from edgeembed.student.distill import distil
    from edgeembed.student.recipe import DistillRecipe
    from edgeembed.student.zoo import timm_name

    overrides = [*([f"student.name={student}"] if student else []), *(set_ or [])]
    settings = load_recipe(DistillRecipe, kind="student", name=recipe, overrides=overrides)
    timm_name(settings.student.name)
    if teacher is None:
        teacher = latest_run("teacher")
        log.info("teacher: %s (the latest run)", teacher)
    if data is None:
        data = manifest_of(teacher)
        log.info("data: %s (the teacher's)", data)
    run = RunFolder(path=out or Path("runs") / settings.student.name)
    result = distil(settings, read_manifest(data), teacher, run, resume=resume)
    for kind, scores in (result.get("scores") or {}).items():
        log.info("val, %s: mAP %.4f, recall@1 %.4f", kind, scores["map"], scores["recall_at_1"])
    log.info("student: %s", run.path)
    if as_json:
        print_json(result)


def manifest_of(run: Path) -> Path:
    """The manifest that a run was trained on."""
    if (run / "source.json").is_file():  # embeddings made a teacher by `targets import`
        return Path(json.loads((run / "source.json").read_text(encoding="utf-8"))["manifest"])
    facts = run / "model.json"
    if not facts.is_file():
        raise UserError(
            f"{run}: holds no finished teacher run: run `edgeembed teacher-train`, or name another --teacher"
        )
    manifest = json.loads(facts.read_text(encoding="utf-8")).get("data", {}).get("manifest")
    if not manifest or not Path(manifest).is_file():
        raise UserError(f"{run}: its data ({manifest}) is not there any more: give a manifest with --data")
    return Path(manifest)
