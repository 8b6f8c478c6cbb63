"""`edgeembed teacher-train` and `edgeembed teacher-join`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.options import Json, KeyOverrides, Resume, RunToResume
from edgeembed.cli.run_inputs import choose_run_folder, input_of_resumed_run
from edgeembed.errors import UserError

if TYPE_CHECKING:
    from edgeembed.run_folder import RunFolder

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
    from edgeembed.config import load_recipe
    from edgeembed.data.manifest import read_manifest
    from edgeembed.eval_json import describe_scores
    from edgeembed.network.model_names import require_backbone
    from edgeembed.run_folder import RunFolder
    from edgeembed.teacher.recipe import TeacherRecipe
    from edgeembed.training.resume import read_run_recipe

    folder = RunFolder(path=choose_run_folder(run, out, resume=resume) or Path("runs/teacher"))
    folder.check_unlocked()
    folder.check_start(resume=resume)
    overrides = [*([f"continue_from={json.dumps(str(from_))}"] if from_ else []), *(overrides or [])]
    if resume and recipe is None:
        settings = read_run_recipe(folder, TeacherRecipe, overrides)
    else:
        settings = load_recipe(TeacherRecipe, kind="teacher", name=recipe or "vit_h14", overrides=overrides)
    require_backbone(settings.backbone.name, settings.backbone.weights)
    manifest = read_manifest(data or manifest_of_resumed(folder, resume=resume))
    manifest.require_files()

    from edgeembed.teacher.train import train_teacher  # imports torch: after all checks that do not need it

    result = train_teacher(settings, manifest, folder, resume=resume)
    if result.scores is not None:
        log.info("val: %s", describe_scores(result.scores, untrained=None))
    else:
        log.info("val: not scored: %s", result.not_scored or "the run was not evaluated")
    log.info("teacher: %s", folder.path)
    if as_json:
        print_json(result.model_dump())


def manifest_of_resumed(folder: RunFolder, *, resume: bool) -> Path:
    """The manifest of a run to be resumed. Raises UserError for a new run, which needs --data."""
    if not resume:
        raise UserError("--data is missing: name a manifest, as `edgeembed data import` writes one")
    manifest = input_of_resumed_run(folder, "data")
    if manifest is None:
        raise UserError(f"{folder.path}: does not record its manifest: name it with --data")
    return manifest


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
