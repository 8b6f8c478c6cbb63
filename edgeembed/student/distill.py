"""Distils a teacher's space into a small student, in one loop that reads top to bottom.

Teacher and student see the same view of an image, each at its own size and with its own constants. Labels are not
used unless loss.label asks for them, so unlabelled images are as good as labelled ones. Left out: an average of the
student's weights, which brings nothing in long schedules.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import torch

from edgeembed.config import to_yaml
from edgeembed.data.batch_order import BatchOrder, EpochVisits
from edgeembed.data.loader import open_training_canvases
from edgeembed.data.manifest import Manifest
from edgeembed.data.shapes import square_shapes
from edgeembed.errors import UserError
from edgeembed.eval_json import StudentEvaluation, read_evaluation
from edgeembed.evaluation import warn_if_collapsed
from edgeembed.model_json import ModelOrigin, TrainingData
from edgeembed.network.model_files import finish_run
from edgeembed.progress import stage
from edgeembed.run_folder import RunFolder
from edgeembed.signals import Interrupted, stop_request
from edgeembed.student.objective import build_objective
from edgeembed.student.recipe import DistillRecipe
from edgeembed.student.targets.provider import replay_of, training_canvas_px, with_targets_precision
from edgeembed.student.teachers import Teacher, open_teacher
from edgeembed.student.validation import Validation
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
from edgeembed.training.validation import plan_validation, steps_between_evaluations

log = logging.getLogger(__name__)


def distil(
    recipe: DistillRecipe, manifest: Manifest, teacher_path: Path, run: RunFolder, *, resume: bool = False
) -> StudentEvaluation:
    """Runs a recipe and leaves a finished run folder; returns what eval.json holds.

    Raises UserError for a missing teacher, data that cannot be trained on and a folder that another process trains in,
    CheckFailed on a loss that is not finite, and Interrupted after a stop signal, with a checkpoint written.
    """
    with run.locked():
        return _train(recipe, manifest, teacher_path, run, resume=resume)


def _train(
    recipe: DistillRecipe, manifest: Manifest, teacher_path: Path, run: RunFolder, *, resume: bool
) -> StudentEvaluation:
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
    inputs: dict[str, dict[str, str | None]] = {
        "teacher": {"id": teacher.space_id, "path": str(teacher_path.resolve())},
        "data": {"id": manifest.fingerprint, "path": str(manifest.source or "") or None},
    }
    begin_run(run, recipe, to_yaml(recipe), inputs, resume=resume)
    if run.finished:
        return read_evaluation(run, StudentEvaluation)

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
    visits = EpochVisits.from_images(np.repeat(usable, manifest.visits(rows)[usable]))
    order = BatchOrder(num_images=len(visits), batch_size=min(batch_size, len(visits)), seed=train.seed)
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
    student.require_view_sizes(image.view_px(0.0), image.view_px())
    student.pca_rotated = teacher.pca_rotated
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
    most_visits = int(visits.visits_per_epoch_V.max())  # of an image in an epoch
    num_visits = train.epochs * most_visits
    num_views = min(recipe.targets.views, num_visits)
    images_left = order.batch_size * (total_steps - first_step)
    answer = teacher.target_function(
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
        for step, number_B in enumerate(order.batches(first_step, total_steps), start=first_step):
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
                    stop.signum,
                    f"step {done} of {total_steps} kept in {run.path}, "
                    f"continue with `edgeembed distill --resume {run.path}`",
                )
            if train.checkpoint_every_steps and (done % train.checkpoint_every_steps == 0 or done == total_steps):
                save(done)

    if validation and evaluated is None:  # stopped after its last step
        evaluated = validation.score(student)
    with stage(f"saving {run.path}"):
        origin = ModelOrigin(
            role="student",
            space_id=teacher.space_id,
            alias=recipe.student.name,
            data=TrainingData(
                fingerprint=manifest.fingerprint,
                manifest=str(manifest.source),
                images=len(rows),
                unreadable=len(canvases.unreadable),
            ),
            weights=student.starting_weights,
            precision=precision,
            device=device,
            teacher=teacher.origin,
        )
        seconds = time.monotonic() - started
        result = StudentEvaluation(
            **planned.counts().model_dump(),
            scores=evaluated.scores if evaluated else None,
            retention=evaluated.retention if evaluated else {},
            teacher=validation.teacher_scores.scores if validation else None,
            untrained=validation.untrained if validation else None,
            spread=evaluated.spread if evaluated else None,
            seconds=round(seconds, 1),
            steps=total_steps,
        )
        finish_run(run, student, origin, evaluation=result)
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
