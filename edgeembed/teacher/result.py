"""Writes the result of a teacher run: the rotated network, its class centres, model.json and eval.json."""

from __future__ import annotations

import time

from edgeembed.config import EvalSection
from edgeembed.data.manifest import Manifest
from edgeembed.eval_json import TeacherEvaluation
from edgeembed.evaluation import RetrievalProtocol, warn_if_collapsed
from edgeembed.model_json import ModelOrigin, TrainingData
from edgeembed.network.model import Network
from edgeembed.network.model_files import finish_run
from edgeembed.network.space_id import space_id
from edgeembed.progress import stage
from edgeembed.run_folder import RunFolder
from edgeembed.teacher.head_files import save_head
from edgeembed.teacher.images import LabelledImages
from edgeembed.teacher.networks import TeacherNetworks
from edgeembed.teacher.pca import rotate_by_pca
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.teacher.warm_start import log_space_change
from edgeembed.training.validation import ValidationScores, evaluate, plan_validation


def save_teacher(
    run: RunFolder,
    recipe: TeacherRecipe,
    manifest: Manifest,
    images: LabelledImages,
    networks: TeacherNetworks,
    *,
    validation: RetrievalProtocol,
    scores: ValidationScores | None,
    num_unreadable: int,
    device: str,
    seconds: float,
    steps: int,
) -> TeacherEvaluation:
    """Rotates the space by PCA and writes the result; returns what eval.json holds.

    The class centres are no part of the network; they are kept beside it for distillation and warm starts.
    """
    with stage(f"saving {run.path}"):
        model = networks.result
        # Where the neck was not trained, the space is that of the warm start: a rotation would change its id.
        if any(parameter.requires_grad for parameter in networks.model.neck.parameters()):
            rotate_by_pca(model, networks.centres, networks.moments)
        # After the rotation, because the id covers the weights of the neck.
        identity = space_id(model)
        # Before `finish_run`, which writes model.json: from then on the run counts as finished.
        save_head(run.path, networks.centres.weight, images.classes)
        origin = ModelOrigin(
            role="teacher",
            space_id=identity,
            data=TrainingData(
                fingerprint=manifest.fingerprint,
                manifest=str(manifest.source),
                images=len(images.files),
                classes=len(images.classes),
                unreadable=num_unreadable,
            ),
            weights=recipe.continue_from or model.starting_weights,
            precision=recipe.train.precision,
            device=device,
        )
        result = TeacherEvaluation(
            **validation.counts().model_dump(),
            scores=scores.scores if scores else None,
            spread=scores.spread if scores else None,
            seconds=round(seconds, 1),
            steps=steps,
        )
        finish_run(run, model, origin, evaluation=result)
    if scores is not None:
        warn_if_collapsed(str(run.path), scores.spread, validation)
    if networks.warm_start is not None:
        log_space_change(networks.warm_start, identity)
    return result


def finish_untrained(
    run: RunFolder, model: Network, origin: ModelOrigin, manifest: Manifest, *, workers: int, started: float
) -> TeacherEvaluation:
    """Scores a teacher that needed no training on val, and writes it; returns what eval.json holds.

    `origin`: with the device that the model is on and its precision; the space id is added. `started`: as
    `time.monotonic` gave it.
    """
    section = EvalSection()
    validation = plan_validation(section, manifest)
    assert origin.device is not None
    assert origin.precision is not None
    scores = None
    if validation.not_scored is None:
        with stage("scoring val"):
            scores = evaluate(
                model,
                validation,
                batch_size=section.batch_size,
                workers=workers,
                device=origin.device,
                precision=origin.precision,
            )
        warn_if_collapsed(str(run.path), scores.spread, validation)
    result = TeacherEvaluation(
        **validation.counts().model_dump(),
        scores=scores.scores if scores else None,
        spread=scores.spread if scores else None,
        seconds=round(time.monotonic() - started, 1),
    )
    finish_run(run, model, origin.model_copy(update={"space_id": space_id(model)}), evaluation=result)
    return result
