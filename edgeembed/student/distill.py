"""Distils a teacher's embedding space into a small student, in one loop from top to bottom.

Teacher and student see the same view of an image, each at its own size and with its own mean and std. Labels are used
only where `loss.label` is above 0, so unlabelled images are as good as labelled ones. There is no moving average of the
student's weights: in long schedules it brings nothing.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from edgeembed.data.manifest import Manifest
from edgeembed.errors import UserError
from edgeembed.eval_json import StudentEvaluation, read_evaluation
from edgeembed.evaluation import RetrievalProtocol, warn_if_collapsed
from edgeembed.model_json import ModelOrigin, TrainingData
from edgeembed.network.macs import count_macs
from edgeembed.network.model import EmbeddingModel, num_params
from edgeembed.network.model_files import finish_run
from edgeembed.progress import stage
from edgeembed.run_folder import RunFolder
from edgeembed.size_ratio import size_ratio
from edgeembed.student.objective import build_objective
from edgeembed.student.recipe import DistillRecipe
from edgeembed.student.targets.provider import replay_of, with_targets_precision
from edgeembed.student.teachers import Teacher, open_teacher
from edgeembed.student.training_data import open_training_data
from edgeembed.student.validation import StudentScores, Validation
from edgeembed.student.zoo import (
    build_student,
    require_student_blocks,
    require_student_size,
    require_student_weights,
)
from edgeembed.training.checkpoints import load_checkpoint
from edgeembed.training.device import pick_device, replace_slow_convolutions, seed_step, set_allocator
from edgeembed.training.forecast import warn_if_too_slow
from edgeembed.training.freezing import freeze_batch_norm
from edgeembed.training.micro_batches import micro_batches, warn_if_batches_of_one
from edgeembed.training.optimizers import build_optimizers, optimizer_step, set_learning_rates
from edgeembed.training.precision import (
    autocast,
    loss_scaler,
    resolve_train_precision,
    restore_loss_scale,
    resumed_precision,
)
from edgeembed.training.recorder import Recorder
from edgeembed.training.resume import RunInput, begin_run, data_input
from edgeembed.training.schedule import learning_rate_factor
from edgeembed.training.validation import plan_validation, steps_between_evaluations


def distill(
    recipe: DistillRecipe, manifest: Manifest, teacher_path: Path, run: RunFolder, *, resume: bool = False
) -> StudentEvaluation:
    """Trains a student by a recipe and writes a finished run folder; returns what eval.json holds.

    Raises UserError for a missing teacher, data that cannot be trained on and a folder that another process trains in,
    CheckFailed on a loss that is not finite, and Interrupted after a stop signal, with a checkpoint written.
    """
    with run.locked():
        return _train(recipe, manifest, teacher_path, run, resume=resume)


def _train(
    recipe: DistillRecipe, manifest: Manifest, teacher_path: Path, run: RunFolder, *, resume: bool
) -> StudentEvaluation:
    """Trains in a folder that this process has locked."""
    # All that can be refused is refused before the run folder is written and before images are read.
    rows = manifest.training_rows()
    if rows.size < 2:
        raise UserError(f"the train split has {rows.size} images, distillation needs at least 2")
    require_student_size(recipe.student.name, recipe.image.size_px)
    require_student_blocks(recipe.student.name, recipe.student.blocks, recipe.student.attention_blocks)
    teacher = open_teacher(teacher_path)
    manifest.require_files()
    planned = plan_validation(recipe.eval, manifest)
    device = pick_device(recipe.train.device)
    recipe = with_precision(recipe, manifest, teacher, run, device, resume=resume)
    teacher_input = RunInput(id=teacher.space_id, path=str(teacher_path.resolve()))
    if not resume:
        require_student_weights(recipe.student.name, recipe.student.weights)
    begin_run(run, recipe, {"teacher": teacher_input, "data": data_input(manifest)}, resume=resume)
    if run.finished:
        return read_evaluation(run, StudentEvaluation)

    # Images, and the student as a resumed run left it.
    train, image = recipe.train, recipe.image
    data = open_training_data(recipe, manifest, rows, teacher)
    total_steps = data.total_steps
    torch.manual_seed(train.seed)
    student = build_run_student(recipe, teacher, device)
    parameters = list(student.parameters())
    optimizers = build_optimizers(student.backbone, student.neck, None, recipe.optim, precision=train.precision)
    scaler = loss_scaler(device, train.precision)
    state = load_checkpoint(run, model=student, optimizers=optimizers) if resume else None
    first_step = state["step"] if state else 0
    if state:  # `auto` may resolve to other weights on this machine than where the run began
        student.starting_weights = state.get("starting_weights", recipe.student.weights)
    restore_loss_scale(scaler, state)

    # What the student learns from and is scored with: the teacher's embeddings of training and validation images.
    num_images_left = data.order.batch_size * (total_steps - first_step)
    teacher_embeddings = teacher.target_function(
        recipe,
        manifest,
        num_views=data.num_views,
        num_visits=data.num_visits,
        num_images=num_images_left,
        device=device,
    )
    objective = build_objective(recipe, manifest, rows, teacher, device)
    eval_every = steps_between_evaluations(recipe.eval, planned, total_steps)
    validation = Validation(recipe, planned, teacher, student, device) if eval_every else None
    warn_if_too_slow(
        student,
        name=recipe.student.name,
        size_px=image.view_px(),
        num_images=num_images_left,
        device=device,
        precision=train.precision,
        instead="distil on a machine with an NVIDIA GPU, or use --student mobilenetv4_s --recipe scratch",
    )
    set_training_mode(student, recipe)
    warn_if_batches_of_one(student, data.order.batch_size)
    # Step costs: the time of a step grows with the area of its views.
    recorder = Recorder[StudentScores](
        run,
        command="distill",
        first_step=first_step,
        step_costs=[float(image.view_px(step / total_steps) ** 2) for step in range(total_steps)],
        eval_every=eval_every,
        checkpoint_every=train.checkpoint_every_steps,
        keep_checkpoints=train.keep_checkpoints,
        time_left_remark=data.time_left_remark if teacher.size_px and recipe.targets.store != "none" else "",
    )
    with recorder:
        batches = replay_of(recipe).batches(data.canvases, data.samples(first_step))
        for step, batch in enumerate(batches, start=first_step):
            lr_factor = learning_rate_factor(
                step, steps_per_epoch=data.order.steps_per_epoch, total_steps=total_steps, section=recipe.optim
            )
            set_learning_rates(optimizers, lr_factor)
            view_px = image.view_px(step / total_steps)
            seed_step(train.seed, step)

            # One optimiser step over `accumulate_steps` micro-batches.
            loss_sum = 0.0
            for micro in micro_batches(student, batch.image_B.size, train.accumulate_steps):
                # Teacher and student embed the same views, each at its own input size.
                teacher_BD = teacher_embeddings(batch, micro)
                image_BCHW = batch.render(micro, view_px, device)
                with autocast(device, train.precision):
                    student_BD = student(image_BCHW)
                loss = objective(student_BD, teacher_BD, image_B=batch.image_B[micro])
                # Micro-batches may differ in size by one: the gradient is the mean over all images of the batch.
                share = micro.size / batch.image_B.size
                scaler.scale(loss * share).backward()
                loss_sum += loss.item() * share
            norm = optimizer_step(
                optimizers, parameters, loss=loss_sum, step=step, clip_norm=train.clip_norm, scaler=scaler
            )

            # Every step: progress. Once in a while: log, evaluate, save a checkpoint. After a signal: stop.
            done = step + 1
            scalars = {
                "epoch": data.order.epoch(step),
                "loss": loss_sum,
                "lr": recipe.optim.lr * lr_factor,
                "gradient_norm": norm,
            }
            recorder.step(done, loss=loss_sum, num_images=batch.image_B.size, scalars=scalars)
            if validation is not None:
                recorder.evaluate(done, partial(validation.score, student))
            began_with = {"starting_weights": student.starting_weights}
            recorder.save_and_stop(done, model=student, optimizers=optimizers, scaler=scaler, state=began_with)

    return save_student(
        run,
        recipe,
        manifest,
        teacher,
        student,
        validation=validation,
        planned=planned,
        scores=recorder.final_evaluation(partial(validation.score, student)) if validation is not None else None,
        num_images=rows.size,
        num_unreadable=len(data.canvases.unreadable),
        device=device,
        seconds=recorder.seconds,
        steps=total_steps,
    )


def set_training_mode(student: EmbeddingModel, recipe: DistillRecipe) -> None:
    """Puts the student into training mode, all but what the recipe freezes."""
    student.train()
    if recipe.student.frozen_batch_norm:
        freeze_batch_norm(student.backbone)


def build_run_student(recipe: DistillRecipe, teacher: Teacher, device: str) -> EmbeddingModel:
    """The student of a recipe on a device, with its projection to the teacher's dimensions.

    Raises UserError where it does not take the sizes of the training views.
    """
    with stage(f"building {recipe.student.name} (weights: {recipe.student.weights})"):
        student = build_student(
            recipe.student.name,
            weights=recipe.student.weights,
            size_px=recipe.image.size_px,
            dim=teacher.dim,
            blocks=recipe.student.blocks,
            attention_blocks=recipe.student.attention_blocks,
            dropout=recipe.student.dropout,
            grad_checkpointing=recipe.train.grad_checkpointing,
        )
    # The smallest and the largest view of the run.
    student.require_view_sizes(recipe.image.view_px(0.0), recipe.image.view_px())
    # The student learns the teacher's space, dimension by dimension.
    student.pca_rotated = teacher.pca_rotated
    student.to(device).to(memory_format=torch.channels_last)
    replace_slow_convolutions(student, device)
    # Both networks are in memory where targets are computed in the loop.
    set_allocator(teacher.nbytes + sum(parameter.nbytes for parameter in student.parameters()))
    return student


def save_student(
    run: RunFolder,
    recipe: DistillRecipe,
    manifest: Manifest,
    teacher: Teacher,
    student: EmbeddingModel,
    *,
    validation: Validation | None,
    planned: RetrievalProtocol,
    scores: StudentScores | None,
    num_images: int,
    num_unreadable: int,
    device: str,
    seconds: float,
    steps: int,
) -> StudentEvaluation:
    """Writes the student, model.json and eval.json; returns what eval.json holds."""
    teacher_origin = teacher.origin
    origin = ModelOrigin(
        role="student",
        space_id=teacher.space_id,
        alias=recipe.student.name,
        data=TrainingData(
            fingerprint=manifest.fingerprint,
            manifest=str(manifest.source),
            images=num_images,
            unreadable=num_unreadable,
        ),
        weights=student.starting_weights,
        precision=recipe.train.precision,
        device=device,
        teacher=teacher_origin,
    )
    result = StudentEvaluation(
        **planned.counts().model_dump(),
        scores=scores.scores if scores else None,
        retention=scores.retention if scores else {},
        size_ratio=size_ratio(
            teacher_params=teacher_origin.params,
            teacher_macs=teacher_origin.macs,
            params=num_params(student),
            macs=count_macs(student),
        ),
        teacher=validation.teacher_scores.scores if validation else None,
        untrained=validation.untrained if validation else None,
        spread=scores.spread if scores else None,
        seconds=round(seconds, 1),
        steps=steps,
    )
    with stage(f"saving {run.path}"):
        finish_run(run, student, origin, evaluation=result)
    if scores is not None:
        warn_if_collapsed(str(run.path), scores.spread, planned)
    return result


def with_precision(
    recipe: DistillRecipe, manifest: Manifest, teacher: Teacher, run: RunFolder, device: str, *, resume: bool
) -> DistillRecipe:
    """The recipe with `train.precision` and `targets.precision` resolved.

    A resumed run keeps both. Else `targets.precision` is that of an existing store of these targets, and `auto` becomes
    what the device computes natively.
    """
    train = resolve_train_precision(recipe.train, run, device, resume=resume)
    kept = resumed_precision(run.config, "targets") if resume else None
    targets = teacher.choose_precision(recipe, manifest, device=device, kept=kept)
    return with_targets_precision(recipe, targets).model_copy(update={"train": train})
