"""`edgeembed teacher-train` and `teacher-join`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.errors import UserError

if TYPE_CHECKING:
    from edgeembed.run_folder import RunFolder

log = logging.getLogger(__name__)

RunToResume = Annotated[Path | None, typer.Argument(metavar="[RUN]", help="With --resume: the run folder.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue RUN, or the run in --out, with its own recipe and data.")
]


@app.command("teacher-train")
def teacher_train(
    run: RunToResume = None,
    data: Annotated[Path | None, typer.Option(help="Manifest, .parquet or .csv; needed for a new run.")] = None,
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
            help="Train on from this finished teacher: more images, more classes.",
            autocompletion=completion.runs,
        ),
    ] = None,
    resume: Resume = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, such as train.epochs=3; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Train the teacher, whose embedding space students learn."""
    from edgeembed.chance import describe_scores
    from edgeembed.config import load_recipe
    from edgeembed.data.manifest import read_manifest
    from edgeembed.network.names import require_backbone
    from edgeembed.run_folder import RunFolder
    from edgeembed.teacher.recipe import TeacherRecipe
    from edgeembed.training.resume import read_run_recipe

    folder = RunFolder(path=chosen_folder(run, out, resume=resume) or Path("runs/teacher"))
    folder.check_unlocked()
    folder.check_start(resume=resume)
    overrides = [*([f"continue_from={json.dumps(str(from_))}"] if from_ else []), *(set_ or [])]
    if resume and recipe is None:
        settings = read_run_recipe(folder, TeacherRecipe, overrides)
    else:
        settings = load_recipe(TeacherRecipe, kind="teacher", name=recipe or "vit_h14", overrides=overrides)
    require_backbone(settings.backbone.name, settings.backbone.weights)
    manifest = read_manifest(data or manifest_of_resumed(folder, resume=resume))
    manifest.require_files()

    from edgeembed.teacher.train import train_teacher  # torch: after all that can be checked without it

    out = folder.path
    result = train_teacher(settings, manifest, folder, resume=resume)
    if scores := result.get("scores"):
        log.info("val: %s", describe_scores(scores, untrained=None))
    else:
        log.info("val: not scored: %s", result.get("not_scored") or "the run was not evaluated")
    log.info("teacher: %s", out)
    if as_json:
        print_json(result)


def chosen_folder(run: Path | None, out: Path | None, *, resume: bool) -> Path | None:
    """The run folder that RUN, which goes with --resume, or --out names."""
    if run is not None and not resume:
        raise UserError(f"{run}: a run named without an option is one to resume: add --resume, or write --out {run}")
    if run is not None and out is not None and run.resolve() != out.resolve():
        raise UserError(f"--resume {run} --out {out}: two run folders: name one")
    return run or out


def manifest_of_resumed(folder: RunFolder, *, resume: bool) -> Path:
    """The manifest that a run to be resumed was trained on."""
    from edgeembed.training.resume import recorded_input

    if not resume:
        raise UserError("--data is missing: name a manifest, as `edgeembed data import` writes one")
    manifest = recorded_input(folder, "data")
    if manifest is None:
        raise UserError(f"{folder.path}: does not record its manifest: name it with --data")
    if not manifest.is_file():
        raise UserError(f"{folder.path}: its manifest {manifest} no longer exists: name it with --data")
    log.info("data: %s (the run's)", manifest)
    return manifest


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
    from edgeembed.files import check_output_folder
    from edgeembed.run_folder import RunFolder

    check_output_folder(out)
    try:
        numbers = [float(text) for text in weights.split(",")] if weights else [1.0] * len(runs)
    except ValueError:
        raise UserError(f"--weights {weights!r}: expected numbers, for example 0.5,1,1") from None

    from edgeembed.teacher.ensemble import build_ensemble  # torch

    facts = build_ensemble(runs, numbers, RunFolder(path=out))
    log.info("joined teacher: %s (%d dimensions, space %s)", out, facts["embedding"]["dim"], facts["space_id"])
    if as_json:
        print_json(facts)
