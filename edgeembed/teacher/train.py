"""Trains a teacher: a large backbone, a neck of 64 dimensions and a margin head, in one loop from top to bottom."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch

from edgeembed.data.manifest import Manifest, class_sizes
from edgeembed.errors import UserError
from edgeembed.eval_json import TeacherEvaluation, read_evaluation
from edgeembed.evaluation import RetrievalProtocol
from edgeembed.network.model import EmbeddingModel
from edgeembed.network.published_weights import require_available
from edgeembed.run_folder import RunFolder
from edgeembed.teacher.images import LabelledImages, labelled_images
from edgeembed.teacher.margin import margin_loss
from edgeembed.teacher.networks import TeacherNetworks, build_networks, require_input_sizes, set_up_stage
from edgeembed.teacher.preserve import preserve_loss
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.teacher.result import save_teacher
from edgeembed.teacher.stages import Stage, plan_stages, step_costs, time_left_remark
from edgeembed.teacher.training_views import TrainingViews
from edgeembed.training.checkpoints import load_checkpoint
from edgeembed.training.device import pick_device, seed_step
from edgeembed.training.ema import update_average, warmed_up_decay
from edgeembed.training.forecast import warn_if_too_slow
from edgeembed.training.micro_batches import micro_batches
from edgeembed.training.optimizers import optimizer_step, set_learning_rates
from edgeembed.training.precision import loss_scaler, resolve_train_precision, restore_loss_scale
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
    if not resume and recipe.continue_from is None:  # a warm start loads no published weights
        require_available(recipe.backbone.name, recipe.backbone.weights, key="backbone.weights")
    begin_run(run, recipe, {"data": data_input(manifest)}, resume=resume)
    if run.finished:
        return read_evaluation(run, TeacherEvaluation)

    views, stages = open_views(recipe, manifest, images, device)
    total_steps = stages[-1].end
    torch.manual_seed(train.seed)  # random weights of network and class centres are drawn in this order
    networks = build_networks(recipe, images, device)
    model, centres = networks.model, networks.centres
    scaler = loss_scaler(device, train.precision)
    num_images_K = class_sizes(images.classes, manifest)
    first_step = run.last_step() if resume else 0
    if first_step <= stages[0].end:
        views.store_features(stages[0], model, manifest, run)
    recorder = Recorder[ValidationScores](
        run,
        command="teacher-train",
        first_step=first_step,
        step_costs=step_costs(stages),
        eval_every=steps_between_evaluations(recipe.eval, validation, total_steps),
        checkpoint_every=train.checkpoint_every_steps,
        keep_checkpoints=train.keep_checkpoints,
        time_left_remark=time_left_remark(stages),
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
            views.begin_stage(current)
            if current.name:
                log.info("stage %s: steps %d to %d of %d", current.name, current.begin, current.end, total_steps)

            begin = max(first_step, current.begin)
            for step, batch in enumerate(views.batches(current, begin), start=begin):
                margin_K = current.margins(step, first_margin_K)
                lr_factor = current.learning_rate_factor(step)
                set_learning_rates(optimizers, lr_factor)
                seed_step(train.seed, step)

                # One optimiser step over `accumulate_steps` micro-batches.
                loss_sum = 0.0
                for micro in micro_batches(model, batch.image_B.size, settings.train.accumulate_steps):
                    embedding_BD, labels, start_BF = views.embed(current, networks, batch, micro, step=step)
                    # For the PCA rotation after the last step.
                    networks.moments.add(embedding_BD, step=step)
                    cosine_BK, column_TB = centres(embedding_BD, labels.label_TB)
                    # Margins go by class number, not by column: Partial FC numbers the classes of a step anew.
                    loss = margin_loss(
                        cosine_BK,
                        column_TB,
                        margin=margin_K[labels.label_TB],
                        scale=settings.head.scale,
                        kind=settings.head.kind,
                        share_TB=labels.share_TB,
                    )
                    if start_BF is not None:
                        keep = settings.preserve
                        loss = loss + keep.weight * preserve_loss(embedding_BD, start_BF, temperature=keep.temperature)
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
        num_unreadable=len(views.canvases.unreadable),
        device=device,
        seconds=recorder.seconds,
        steps=total_steps,
    )


def open_views(
    recipe: TeacherRecipe, manifest: Manifest, images: LabelledImages, device: str
) -> tuple[TrainingViews, list[Stage]]:
    """Opens the training images at the size of the first stage, and plans all stages.

    Raises UserError where fewer than two images can be decoded.
    """
    views = TrainingViews(recipe, images, device)
    readable = views.canvases.readable()
    if readable.size < 2:
        raise UserError(f"{readable.size} of {len(images.files)} training images can be read, expected at least 2")
    return views, plan_stages(recipe, images.files, images.class_N, manifest.visits(images.row_N), readable)


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
    num_images = sum(each.num_images_from(first_step) for each in stages)
    if not num_images:  # all of the run trains on stored features, which have been computed by now
        return
    warn_if_too_slow(
        model,
        name=current.recipe.backbone.name,
        # The last view of a stage is its largest.
        size_px=current.view_px(current.end - 1),
        num_images=num_images,
        device=device,
        precision=current.recipe.train.precision,
        instead="train on a machine with an NVIDIA GPU, or with --recipe grocery_cpu on two CPU cores",
    )
