"""`edgeembed teacher-train`, `edgeembed teacher-import` and `edgeembed teacher-join`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.options import Json, KeyOverrides, Resume, RunToResume
from edgeembed.errors import UserError
from edgeembed.run_inputs import choose_run_folder

if TYPE_CHECKING:
    from edgeembed.api import TeacherResult
    from edgeembed.eval_json import TeacherEvaluation

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

    result = api.train_teacher(
        data,
        recipe=recipe,
        out=choose_run_folder(run, out, resume=resume),
        warm_start=from_,
        resume=resume,
        overrides=overrides or (),
    )
    log_teacher(result)
    if as_json:
        print_json(result.evaluation.model_dump())


@app.command("teacher-import")
def teacher_import(
    network: Annotated[
        str,
        typer.Argument(
            help="timm:NAME or open_clip:NAME/TAG, for the published weights; with @FILE behind it, for those in a "
            "file; with @none, for random ones."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Manifest, .parquet or .csv, whose training images the PCA is of.")],
    dim: Annotated[
        str, typer.Option(help="Number of embedding dimensions, or features: all of the network's, without PCA.")
    ] = "64",
    size_px: Annotated[
        int | None,
        typer.Option(min=16, max=2048, help="Side of the network's input in pixels; default: as it was trained."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder to write; default: runs/timm-NAME or runs/open_clip-NAME-TAG.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 2,
    as_json: Json = False,
) -> None:
    """Use a pretrained network as a teacher, without training: its features, projected by PCA. Needs no labels."""
    from edgeembed import api

    if dim != "features" and not (dim.isascii() and dim.isdecimal() and len(dim) < 7):
        raise UserError(f"--dim {dim!r}: expected a whole number, or features")
    kept: int | Literal["features"] = int(dim) if dim != "features" else "features"
    result = api.import_teacher(network, data=data, dim=kept, size_px=size_px, out=out, workers=workers)
    log_teacher(result)
    if as_json:
        print_json(result.evaluation.model_dump())


def log_teacher(result: TeacherResult) -> None:
    """Logs the val scores and the folder of a finished teacher."""
    log_scores(result.evaluation)
    log.info("teacher: %s", result.run)


def log_scores(evaluation: TeacherEvaluation) -> None:
    """Logs the val scores of a teacher, or why there are none."""
    from edgeembed.eval_json import describe_scores

    if evaluation.scores is not None:
        log.info("val: %s", describe_scores(evaluation.scores, untrained=None))
    else:
        log.info("val: not scored: %s", evaluation.not_scored or "the run was not evaluated")


@app.command("teacher-join")
def teacher_join(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Finished teacher runs.")],
    weights: Annotated[
        str | None,
        typer.Option(help="Comma-separated weights, one for each run, such as 0.5,1,1; default: 1 for each."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Manifest whose training images the projection to --dim is of; default: no projection."),
    ] = None,
    dim: Annotated[
        int | None, typer.Option(min=1, help="Number of embedding dimensions, with --data; default: 64.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Run folder to write.")] = Path("runs/joined"),
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images, with --data.")] = 2,
    as_json: Json = False,
) -> None:
    """Combine teachers into an ensemble.

    Its embedding is the concatenation of their weighted embeddings. With --data, these are standardised first, and a
    PCA projects the concatenation to --dim dimensions.
    """
    from edgeembed.data.manifest import read_manifest
    from edgeembed.eval_json import TeacherEvaluation, read_evaluation
    from edgeembed.files import check_output_folder
    from edgeembed.run_folder import RunFolder

    check_output_folder(out)
    if dim is not None and data is None:
        raise UserError(f"--dim {dim}: needs --data, a manifest with images to compute the projection from")
    try:
        numbers = [float(text) for text in weights.split(",")] if weights else [1.0] * len(runs)
    except ValueError:
        raise UserError(f"--weights {weights!r}: expected numbers, for example 0.5,1,1") from None
    manifest = None if data is None else read_manifest(data)
    if manifest is not None:
        manifest.require_files()

    from edgeembed.teacher.ensemble import build_ensemble  # imports torch

    run = RunFolder(path=out)
    facts = build_ensemble(runs, numbers, run, manifest=manifest, dim=dim or 64, workers=workers)
    if manifest is not None:
        log_scores(read_evaluation(run, TeacherEvaluation))
    log.info("ensemble: %s (%d dimensions, space %s)", out, facts["embedding"]["dim"], facts["space_id"])
    if as_json:
        print_json(facts)
