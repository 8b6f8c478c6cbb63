"""Trains a teacher: a large backbone, a neck of 64 dimensions and a margin head, in one loop from top to bottom."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from edgeembed.data.loader import CanvasLoader, open_training_canvases
from edgeembed.data.manifest import Manifest, class_sizes
from edgeembed.errors import UserError
from edgeembed.eval_json import TeacherEvaluation, read_evaluation
from edgeembed.evaluation import RetrievalProtocol
from edgeembed.network.model import EmbeddingModel
from edgeembed.network.published_weights import require_available
from edgeembed.progress import stage
from edgeembed.run_folder import RunFolder
from edgeembed.teacher.images import LabelledImages, labelled_images, render_labelled_views
from edgeembed.teacher.margin import margin_loss
from edgeembed.teacher.networks import TeacherNetworks, build_networks, require_input_sizes, set_up_stage
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.teacher.result import save_teacher
from edgeembed.teacher.stages import Stage, canvas_shapes, plan_stages, step_costs
from edgeembed.training.checkpoints import load_checkpoint
from edgeembed.training.device import pick_device, seed_step
from edgeembed.training.ema import update_average, warmed_up_decay
from edgeembed.training.forecast import warn_if_too_slow
from edgeembed.training.micro_batches import micro_batches
from edgeembed.training.optimizers import optimizer_step, set_learning_rates
from edgeembed.training.precision import autocast, loss_scaler, resolve_train_precision, restore_loss_scale
from edgeembed.training.recorder import Recorder
from edgeembed.training.resume import begin_run, data_input
from edgeembed.training.validation import ValidationScores, evaluate, plan_validation, steps_between_evaluations

log = logging.getLogger(__name__)


def train_teacher(
    recipe: TeacherRecipe, manifest: Manifest, run: RunFolder, *, resume: bool = False
) -> TeacherEvaluation:
    """Trains by a recipe and writes a finished run folder; returns what eval.json holds.

    Raises UserError for data that cannot be trained on and for a folder that another process trains in, CheckFailed on
    a loss that is not finite, and Interrupted after a stop signal, with a checkpoint written.
    """
    # Before images are read. A finished run and a warm start load no published weights.
    if not run.finished and recipe.continue_from is None:
        require_available(recipe.backbone.name, recipe.backbone.weights, key="backbone.weights")
    with run.locked():
        return _train(recipe, manifest, run, resume=resume)


def _train(recipe: TeacherRecipe, manifest: Manifest, run: RunFolder, *, resume: bool) -> TeacherEvaluation:
    """Trains in a folder that this process has locked."""
    # All that can be refused is refused before the run folder is written and before a large network is built.
    images = labelled_images(manifest)
    require_input_sizes(recipe)
    manifest.require_files()
    validation = plan_validation(recipe.eval, manifest)
    device = pick_device(recipe.train.device)
    train = resolve_train_precision(recipe.train, run, device, resume=resume)
    # The run folder records the resolved precision, which a resume on another machine keeps.
    recipe = recipe.model_copy(update={"train": train})
    begin_run(run, recipe, {"data": data_input(manifest)}, resume=resume)
    if run.finished:
        return read_evaluation(run, TeacherEvaluation)

    canvases, stages = open_images(recipe, manifest, images)
    total_steps = stages[-1].end
    torch.manual_seed(train.seed)  # random weights of network and class centres are drawn in this order
    networks = build_networks(recipe, images, device)
    model, centres = networks.model, networks.centres
    scaler = loss_scaler(device, train.precision)
    num_images_K = class_sizes(images.classes, manifest)
    first_step = run.last_step() if resume else 0
    recorder = Recorder[ValidationScores](
        run,
        command="teacher-train",
        first_step=first_step,
        step_costs=step_costs(stages),
        eval_every=steps_between_evaluations(recipe.eval, validation, total_steps),
        checkpoint_every=train.checkpoint_every_steps,
        keep_checkpoints=train.keep_checkpoints,
    )
    validate = bind_evaluation(recipe, networks, validation, device)

    with recorder:
        for current in stages:
            # A resumed run: it has finished this stage.
            if first_step > current.end:
                continue
            # A new stage: what it freezes, its image sizes, optimisers and margins.
            settings = current.recipe
            optimizers = set_up_stage(networks, current)
            parameters = [each for each in networks.checkpointed.parameters() if each.requires_grad]
            first_margin_K = current.first_margins(num_images_K).to(device)
            # Once, in the stage in which training begins: the estimate includes the later stages.
            if current.begin <= first_step < current.end:
                warn_if_teacher_too_slow(model, current, stages, first_step=first_step, device=device)

            # A resumed run: its checkpoint fits the networks and optimisers of the stage in which it was saved.
            if first_step > current.begin:
                restore(run, networks, optimizers, scaler)
                # Saved exactly between two stages: restored here, trained on in the next stage.
                if first_step == current.end and current is not stages[-1]:
                    continue
            if not np.array_equal(canvases.shapes_N2, current.shapes_N2):
                del canvases  # before the next ones are read: they may take much of the memory
                with stage(f"reading {len(images.files)} training images"):
                    canvases = open_training_canvases(settings.train, images.files, current.shapes_N2)
            if current.name:
                log.info("stage %s: steps %d to %d of %d", current.name, current.begin, current.end, total_steps)

            begin = max(first_step, current.begin)
            samples = current.samples(begin)
            batches = canvases.batches([image_B for image_B, _ in samples])
            for step, ((image_B, view_B), batch) in enumerate(zip(samples, batches, strict=True), start=begin):
                view_B = view_B[np.isin(image_B, batch.image_B)]  # of the images that could be decoded
                margin_K = current.margins(step, first_margin_K)
                lr_factor = current.learning_rate_factor(step)
                set_learning_rates(optimizers, lr_factor)
                seed_step(train.seed, step)

                # One optimiser step over `accumulate_steps` micro-batches.
                loss_sum = 0.0
                for micro in micro_batches(model, batch.image_B.size, settings.train.accumulate_steps):
                    views = render_labelled_views(
                        current, batch, micro, view_B=view_B, class_N=images.class_N, step=step, device=device
                    )
                    # Each weight is used once in a pass: autocast would keep a copy of it in bf16 for nothing.
                    with autocast(device, train.precision, cache_enabled=False):
                        embedding_BD = model(views.image_BCHW)
                    # For the PCA rotation after the last step.
                    networks.moments.add(embedding_BD, step=step)
                    cosine_BK, column_TB = centres(embedding_BD, views.label_TB)
                    # Margins go by class number, not by column: Partial FC numbers the classes of a step anew.
                    loss = margin_loss(
                        cosine_BK,
                        column_TB,
                        margin=margin_K[views.label_TB],
                        scale=settings.head.scale,
                        kind=settings.head.kind,
                        share_TB=views.share_TB,
                    )
                    # Micro-batches may differ in size by one: the gradient is the mean over all images of the batch.
                    share = micro.size / batch.image_B.size
                    scaler.scale(loss * share).backward()
                    loss_sum += loss.item() * share
                norm = optimizer_step(
                    optimizers, parameters, loss=loss_sum, step=step, clip_norm=train.clip_norm, scaler=scaler
                )
                if networks.average is not None and train.ema_decay is not None:
                    update_average(networks.average, model, decay=warmed_up_decay(train.ema_decay, step))

                # Every step: progress. Once in a while: log, evaluate, save a checkpoint. After a signal: stop.
                done = step + 1
                scalars = {
                    "epoch": current.epoch(step),
                    "loss": loss_sum,
                    "margin": float(margin_K.max()),
                    "lr": settings.optim.lr * lr_factor,
                    "gradient_norm": norm,
                }
                recorder.step(done, loss=loss_sum, num_images=batch.image_B.size, scalars=scalars)
                recorder.evaluate(done, validate)
                recorder.save_and_stop(done, model=networks.checkpointed, optimizers=optimizers, scaler=scaler)

    return save_teacher(
        run,
        recipe,
        manifest,
        images,
        networks,
        validation=validation,
        scores=recorder.final_evaluation(validate),
        num_unreadable=len(canvases.unreadable),
        device=device,
        seconds=recorder.seconds,
        steps=total_steps,
    )


def open_images(recipe: TeacherRecipe, manifest: Manifest, images: LabelledImages) -> tuple[CanvasLoader, list[Stage]]:
    """Opens the training images at the size of the first stage, and plans all stages.

    Raises UserError where fewer than two images can be decoded.
    """
    _, first_stage = recipe.resolve_stages()[0]
    with stage(f"reading {len(images.files)} training images of {len(images.classes)} classes"):
        canvases = open_training_canvases(first_stage.train, images.files, canvas_shapes(first_stage, images.files))
    readable = canvases.readable()
    if readable.size < 2:
        raise UserError(f"{readable.size} of {len(images.files)} training images can be read, expected at least 2")
    return canvases, plan_stages(recipe, images.files, images.class_N, manifest.visits(images.row_N), readable)


def bind_evaluation(
    recipe: TeacherRecipe, networks: TeacherNetworks, protocol: RetrievalProtocol, device: str
) -> Callable[[], ValidationScores]:
    """A function that scores the network which the run will return, as it is when the function is called."""
    return partial(
        evaluate,
        networks.result,
        protocol,
        batch_size=recipe.eval.batch_size,
        workers=recipe.train.workers,
        device=device,
        precision=recipe.train.precision,
    )


def restore(
    run: RunFolder,
    networks: TeacherNetworks,
    optimizers: Sequence[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler,
) -> None:
    """Restores networks, optimisers and loss scale from the newest checkpoint."""
    # Checkpoints of an earlier version lack the mean of the embeddings: it is then averaged from here on.
    optional = ("moments.mean_D",)
    state = load_checkpoint(run, model=networks.checkpointed, optimizers=optimizers, optional=optional)
    restore_loss_scale(scaler, state)


def warn_if_teacher_too_slow(
    model: EmbeddingModel, current: Stage, stages: Sequence[Stage], *, first_step: int, device: str
) -> None:
    """Warns before the first step where the steps that are left would take days on a CPU."""
    warn_if_too_slow(
        model,
        name=current.recipe.backbone.name,
        # The last view of a stage is its largest.
        size_px=current.view_px(current.end - 1),
        num_images=sum(each.num_images_from(first_step) for each in stages),
        device=device,
        precision=current.recipe.train.precision,
        instead="train on a machine with an NVIDIA GPU, or with --recipe grocery_cpu on two CPU cores",
    )
