"""Distils a teacher's space into a small student, in one loop that reads top to bottom.

Teacher and student see the same view of an image, each at its own size and with its own constants. Labels are not
used unless loss.label asks for them, so unlabelled images are as good as labelled ones. Left out: an average of the
student's weights, which brings nothing in long schedules.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeembed.arrays import FloatArray
from edgeembed.config import to_yaml
from edgeembed.data.loader import Order, Visits, open_training_canvases
from edgeembed.data.manifest import Manifest, Rows
from edgeembed.data.shapes import square_shapes
from edgeembed.errors import UserError
from edgeembed.evaluation import EvaluationSet, Retention, ScoredQueries, retention, score_queries, warn_if_collapsed
from edgeembed.files import read_json
from edgeembed.metrics import RetrievalScores
from edgeembed.network.model import EmbeddingModel, Network
from edgeembed.network.model_files import finish_run
from edgeembed.network.untrained import untrained_network
from edgeembed.progress import stage
from edgeembed.run_folder import RunFolder
from edgeembed.signals import Interrupted, stop_request
from edgeembed.spread import Spread, spread_of
from edgeembed.student.objective import build_objective
from edgeembed.student.recipe import DistillRecipe
from edgeembed.student.targets.provider import replay_of, training_canvas_px, with_targets_precision
from edgeembed.student.teachers import Teacher, open_teacher
from edgeembed.student.zoo import build_student, require_student_size
from edgeembed.training.checkpoints import load_checkpoint, save_checkpoint
from edgeembed.training.device import pick_device, seed_step, set_allocator, suit_convolutions
from edgeembed.training.forecast import warn_if_hopeless
from edgeembed.training.micro_batches import micro_batches, warn_if_lone_images
from edgeembed.training.optimizers import build_optimizers, set_rates, take_step
from edgeembed.training.precision import autocast, choose_precision, loss_scaler, resume_scale, resumed_precision
from edgeembed.training.recorder import TrainingLog
from edgeembed.training.resume import begin_run
from edgeembed.training.schedule import rate_factor
from edgeembed.training.validation import embed_files, plan_validation, steps_between_evaluations

log = logging.getLogger(__name__)


def distil(
    recipe: DistillRecipe, manifest: Manifest, teacher_path: Path, run: RunFolder, *, resume: bool = False
) -> dict[str, Any]:
    """Runs a recipe and leaves a finished run folder; returns what eval.json holds.

    Raises UserError for a missing teacher, data that cannot be trained on and a folder that another process trains in,
    CheckFailed on a loss that is not finite, and Interrupted after a stop signal, with a checkpoint written.
    """
    with run.locked():
        return _train(recipe, manifest, teacher_path, run, resume=resume)


def _train(
    recipe: DistillRecipe, manifest: Manifest, teacher_path: Path, run: RunFolder, *, resume: bool
) -> dict[str, Any]:
    """The run itself, in a folder that this process has locked."""
    rows = manifest.training_rows()
    if rows.size < 2:
        raise UserError(f"the train split has {rows.size} images, distillation needs at least 2")
    require_student_size(recipe.student.name, recipe.image.size_px)
    teacher = open_teacher(teacher_path)
    manifest.require_files()
    planned = plan_validation(recipe.eval, manifest)
    device = pick_device(recipe.train.device)
    recipe = with_precision(recipe, manifest, teacher, run, device, resume=resume)
    precision = recipe.train.precision
    inputs = {
        "teacher": {"id": teacher.facts["space_id"], "path": str(teacher_path.resolve())},
        "data": {"id": manifest.fingerprint, "path": str(manifest.source or "") or None},
    }
    begin_run(run, recipe, to_yaml(recipe), inputs, resume=resume)
    if run.finished:
        return read_json(run.path / "eval.json")

    train, image = recipe.train, recipe.image
    canvas_px = training_canvas_px(recipe, teacher.size_px)
    batch_size = train.batch_size * train.accumulate_steps
    with stage(f"reading {len(rows)} training images"):
        files = [manifest.files[row] for row in rows]
        canvases = open_training_canvases(train, files, square_shapes(len(files), canvas_px))
    readable = canvases.readable()
    usable = teacher.usable(readable)
    if usable.size < readable.size:
        log.warning("the teacher has no embedding of %d training images: left out", readable.size - usable.size)
    if usable.size < 2:
        raise UserError(f"{usable.size} of {len(files)} training images can be used, distillation needs at least 2")
    visits = Visits.of(np.repeat(usable, manifest.visits(rows)[usable]))
    order = Order(num_images=len(visits), batch_size=min(batch_size, len(visits)), seed=train.seed)
    total_steps = min(train.epochs * order.steps_per_epoch, train.max_steps or 2**62)
    eval_every = steps_between_evaluations(recipe.eval, planned, total_steps)

    torch.manual_seed(train.seed)
    with stage(f"building {recipe.student.name} (weights: {recipe.student.weights})"):
        student = build_student(
            recipe.student.name,
            weights=recipe.student.weights,
            size_px=image.size_px,
            dim=teacher.dim,
            dropout=recipe.student.dropout,
            grad_checkpointing=train.grad_checkpointing,
        )
    student.require_views(image.view_px(0.0), image.view_px())
    student.ordered = bool(teacher.facts.get("embedding", {}).get("ordered", False))
    student.to(device).to(memory_format=torch.channels_last)
    suit_convolutions(student, device)
    parameters = list(student.parameters())
    set_allocator(teacher.nbytes + sum(parameter.nbytes for parameter in parameters))
    optimizers = build_optimizers(student.backbone, student.neck, None, recipe.optim, precision=precision)
    scaler = loss_scaler(device, precision)
    state = load_checkpoint(run, model=student, optimizers=optimizers) if resume else None
    first_step = state["step"] if state else 0
    if state:  # what `auto` finds on this machine is not what the run began with
        student.starting_weights = state.get("starting_weights", recipe.student.weights)
    resume_scale(scaler, state)
    run.drop_metrics_after(first_step)
    most_visits = int(visits.times_V.max())  # of an image in an epoch
    num_visits = train.epochs * most_visits
    num_views = min(recipe.targets.views, num_visits)
    images_left = order.batch_size * (total_steps - first_step)
    answer = teacher.answers(
        recipe, manifest, num_views=num_views, num_visits=num_visits, num_images=images_left, device=device
    )
    objective = build_objective(recipe, manifest, rows, teacher, device)
    validation = Validation(recipe, planned, teacher, student, device) if eval_every else None

    def save(step: int) -> None:
        state = {"loss_scale": scaler.state_dict(), "starting_weights": student.starting_weights}
        save_checkpoint(run, step=step, model=student, optimizers=optimizers, keep=train.keep_checkpoints, state=state)

    warn_if_hopeless(
        student,
        name=recipe.student.name,
        size_px=image.view_px(),
        num_images=images_left,
        device=device,
        precision=precision,
        instead="distil on a machine with an NVIDIA GPU, or --student mobilenetv4_s --recipe scratch",
    )
    work_S = [float(image.view_px(step / total_steps) ** 2) for step in range(total_steps)]
    recurs = num_views < num_visits and teacher.size_px and recipe.targets.store != "none"
    first_recurring = num_views // most_visits + 1
    remark = f"; less from epoch {first_recurring} of {train.epochs} on, when views recur" if recurs else ""
    started, evaluated = time.monotonic(), None
    student.train()
    warn_if_lone_images(student, order.batch_size)
    with (
        stop_request() as stop,
        TrainingLog(run, first_step=first_step, work_S=work_S, remark=remark) as training_log,
    ):
        samples = []
        for step, number_B in enumerate(order.wanted(first_step, total_steps), start=first_step):
            image_B, view_B = visits.samples(number_B, order.epoch(step))
            samples.append((image_B, view_B % num_views))
        for step, batch in enumerate(replay_of(recipe).batches(canvases, samples), start=first_step):
            epoch = order.epoch(step)
            factor = rate_factor(
                step, steps_per_epoch=order.steps_per_epoch, total_steps=total_steps, section=recipe.optim
            )
            set_rates(optimizers, factor)
            view_px = image.view_px(step / total_steps)
            seed_step(train.seed, step)

            # One optimiser step over `accumulate_steps` micro-batches.
            loss_sum = 0.0
            for micro in micro_batches(student, batch.image_B.size, train.accumulate_steps):
                teacher_BD = answer(batch, micro)
                image_BCHW = batch.render(micro, view_px, device)
                with autocast(device, precision):
                    student_BD = student(image_BCHW)
                loss = objective(student_BD, teacher_BD, image_B=batch.image_B[micro])
                share = micro.size / batch.image_B.size
                scaler.scale(loss * share).backward()
                loss_sum += loss.item() * share
            norm = take_step(optimizers, parameters, loss=loss_sum, step=step, clip_norm=train.clip_norm, scaler=scaler)

            done = step + 1
            val_map = evaluated.scores["asymmetric"].map if evaluated else None
            shown = "" if val_map is None else f"  val mAP {val_map:.3f} asymmetric"
            training_log.step(done, f"loss {loss_sum:.4f}{shown}", images=batch.image_B.size)
            if done % 10 == 0 or done == total_steps:
                training_log.scalars(
                    done,
                    {"epoch": epoch, "loss": loss_sum, "lr": recipe.optim.lr * factor, "gradient_norm": norm},
                )
            if validation and (done % eval_every == 0 or done == total_steps):
                evaluated = validation.score(student)
                training_log.scalars(done, {f"val_{kind}_map": one.map for kind, one in evaluated.scores.items()})
            if stop.signum is not None:
                save(done)
                raise Interrupted(
                    stop.signum, f"step {done} of {total_steps} kept in {run.path}, continue with --resume"
                )
            if train.checkpoint_every_steps and (done % train.checkpoint_every_steps == 0 or done == total_steps):
                save(done)

    if validation and evaluated is None:  # stopped after its last step
        evaluated = validation.score(student)
    with stage(f"saving {run.path}"):
        facts = {
            "role": "student",
            "space_id": teacher.facts["space_id"],
            "alias": recipe.student.name,
            "data": {
                "fingerprint": manifest.fingerprint,
                "manifest": str(manifest.source),
                "images": len(rows),
                "unreadable": len(canvases.unreadable),
            },
            "weights": student.starting_weights,
            "precision": precision,
            "device": device,
            "teacher": {
                "path": str(teacher_path),
                "backbone": teacher.facts["architecture"]["backbone"],
                "params": teacher.facts["architecture"].get("params"),
                "data": teacher.facts.get("data"),
            },
        }
        seconds = time.monotonic() - started
        evaluation = {
            **planned.counts(),
            "scores": {kind: asdict(one) for kind, one in evaluated.scores.items()} if evaluated else None,
            "retention": {kind: one and asdict(one) for kind, one in evaluated.retention.items()} if evaluated else {},
            "teacher": asdict(validation.teacher_scores.scores) if validation else None,
            "untrained": validation.untrained if validation else None,
            "spread": asdict(evaluated.spread) if evaluated and evaluated.spread else None,
        }
        result = finish_run(run, student, facts, evaluation=evaluation, seconds=seconds, steps=total_steps)
    if evaluated is not None:
        warn_if_collapsed(str(run.path), evaluated.spread, planned)
    return result


def with_precision(
    recipe: DistillRecipe, manifest: Manifest, teacher: Teacher, run: RunFolder, device: str, *, resume: bool
) -> DistillRecipe:
    """The recipe with `train.precision` and `targets.precision` resolved: as a resumed run began, as a store of targets
    that is there already, or what the device computes natively.
    """
    kept = resumed_precision(run.config, "train") if resume else None
    train = choose_precision(recipe.train.precision, device, key="train.precision", kept=kept)
    kept = resumed_precision(run.config, "targets") if resume else None
    targets = teacher.choose_precision(recipe, manifest, device=device, kept=kept)
    recipe = with_targets_precision(recipe, targets)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": train})})


@dataclass(frozen=True, kw_only=True)
class StudentScores:
    """A student's retrieval in its own index (symmetric) and in the teacher's (asymmetric); `retention` is its mAP in
    each as a share of the teacher's mAP in the teacher's index.
    """

    scores: dict[str, RetrievalScores]
    retention: dict[str, Retention | None]
    spread: Spread | None


class Validation:
    """Scores a student on the val split against its own index and against the teacher's, embedded once.

    `teacher_scores`: the teacher's, in its own index. `untrained`: the figures of the student's architecture with
    random weights, in both indexes; None where it is too large.
    """

    def __init__(
        self, recipe: DistillRecipe, planned: EvaluationSet, teacher: Teacher, student: EmbeddingModel, device: str
    ) -> None:
        self.recipe, self.planned, self.device = recipe, planned, device
        with stage(f"embedding {len(planned.rows)} validation images with the teacher"):
            embedded = teacher.embed(planned.manifest, planned.rows, recipe, device)
        self.teacher_embedding_ND, self.teacher_rows = embedded
        self.teacher_scores = self.against_index(*embedded, *embedded)
        self.untrained: dict[str, Any] | None = None
        if (untrained := untrained_network(student.describe())) is not None:
            with stage(f"embedding {len(planned.rows)} validation images with an untrained {untrained.name}"):
                found = self.score(untrained.to(device)).scores
            self.untrained = {kind: one.figures for kind, one in found.items()}

    def score(self, student: Network) -> StudentScores:
        planned = self.planned
        embedding_ND, kept = embed_files(
            student,
            planned.files,
            batch_size=self.recipe.eval.batch_size,
            workers=self.recipe.train.workers,
            device=self.device,
            precision=self.recipe.train.precision,
        )
        rows = planned.rows[kept]

        scored = {
            "symmetric": self.against_index(embedding_ND, rows, embedding_ND, rows),
            "asymmetric": self.against_index(embedding_ND, rows, self.teacher_embedding_ND, self.teacher_rows),
        }
        return StudentScores(
            scores={kind: one.scores for kind, one in scored.items()},
            retention={kind: retention(one, self.teacher_scores) for kind, one in scored.items()},
            spread=spread_of(embedding_ND),
        )

    def against_index(
        self, query_ND: FloatArray, query_rows: Rows, index_ND: FloatArray, index_rows: Rows
    ) -> ScoredQueries:
        """Scores of (M, D) query embeddings and (N, D) index embeddings of some manifest rows."""
        planned = self.planned
        return score_queries(query_ND, query_rows, index_ND, index_rows, planned.manifest, planned.query, planned.index)
