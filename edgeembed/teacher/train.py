"""Trains a teacher: a large tower, a 64-d neck and a margin head, in one loop that reads top to bottom."""

from __future__ import annotations

import copy
import logging
import time

import numpy as np
import torch
from torch import nn

from edgeembed.config import to_yaml
from edgeembed.data.augment import draw_views
from edgeembed.data.loader import open_training_canvases
from edgeembed.data.manifest import Manifest, class_indices, class_sizes
from edgeembed.data.views import mix_views, render_views
from edgeembed.errors import UserError
from edgeembed.eval_json import TeacherEvaluation, read_evaluation
from edgeembed.evaluation import warn_if_collapsed
from edgeembed.files import write_json
from edgeembed.model_json import ModelOrigin, TrainingData
from edgeembed.network.backbone import require_input_size
from edgeembed.network.initial_weights import name_starting_weights
from edgeembed.network.model import EmbeddingModel, build_model
from edgeembed.network.model_files import finish_run, space_id
from edgeembed.network.tensor_files import save_tensors
from edgeembed.progress import stage
from edgeembed.run_folder import RunFolder
from edgeembed.signals import Interrupted, stop_request
from edgeembed.teacher.margin import ClassCentres, class_margins, margin_loss, margins_at
from edgeembed.teacher.pca import Moments, order_dimensions
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.teacher.stages import canvas_shapes, plan_stages, work_of
from edgeembed.teacher.warm_start import inherit_centres, open_parent, report_space
from edgeembed.training.checkpoints import load_checkpoint, save_checkpoint
from edgeembed.training.device import pick_device, seed_step, set_allocator, suit_convolutions
from edgeembed.training.ema import move_average
from edgeembed.training.forecast import warn_if_hopeless
from edgeembed.training.freezing import freeze_batch_norm, freeze_blocks, freeze_parts
from edgeembed.training.micro_batches import micro_batches, warn_if_lone_images
from edgeembed.training.optimizers import build_optimizers, set_rates, take_step
from edgeembed.training.precision import autocast, choose_precision, loss_scaler, resume_scale, resumed_precision
from edgeembed.training.recorder import TrainingLog
from edgeembed.training.resume import begin_run
from edgeembed.training.schedule import rate_factor
from edgeembed.training.validation import (
    Evaluated,
    evaluate,
    plan_validation,
    steps_between_evaluations,
)

log = logging.getLogger(__name__)


def train_teacher(
    recipe: TeacherRecipe, manifest: Manifest, run: RunFolder, *, resume: bool = False
) -> TeacherEvaluation:
    """Runs a recipe and leaves a finished run folder; returns what eval.json holds.

    Raises UserError for data that cannot be trained on and for a folder that another process trains in, CheckFailed on
    a loss that is not finite, and Interrupted after a stop signal, with a checkpoint written.
    """
    with run.locked():
        return _train(recipe, manifest, run, resume=resume)


def _train(recipe: TeacherRecipe, manifest: Manifest, run: RunFolder, *, resume: bool) -> TeacherEvaluation:
    """The run itself, in a folder that this process has locked."""
    # Data: labelled training images, the stages of the run and the order in which each visits them.
    rows = manifest.training_rows()
    classes = manifest.class_names(rows)
    if len(classes) < 2:
        raise UserError(
            f"{manifest.source or 'the manifest'}: its train split has {len(classes)} labelled classes, a margin head "
            "needs at least 2: label more images, or distil from the embeddings of another model (`targets import`)"
        )
    class_of_row = class_indices(classes, manifest, rows)
    rows, class_of_row = rows[class_of_row >= 0], class_of_row[class_of_row >= 0]
    require_sizes(recipe)
    manifest.require_files()
    validation = plan_validation(recipe.eval, manifest)
    device = pick_device(recipe.train.device)
    kept = resumed_precision(run.config, "train") if resume else None
    precision = choose_precision(recipe.train.precision, device, key="train.precision", kept=kept)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": precision})})
    inputs = {"data": {"id": manifest.fingerprint, "path": str(manifest.source or "") or None}}
    begin_run(run, recipe, to_yaml(recipe), inputs, resume=resume)
    if run.finished:
        return read_evaluation(run, TeacherEvaluation)

    train = recipe.train
    files = [manifest.files[row] for row in rows]
    _, opening = recipe.resolve_stages()[0]
    with stage(f"reading {len(rows)} training images of {len(classes)} classes"):
        canvases = open_training_canvases(opening.train, files, canvas_shapes(opening, files))
    if canvases.readable().size < 2:
        raise UserError(f"{canvases.readable().size} of {len(files)} training images can be read, expected at least 2")
    stages = plan_stages(recipe, files, class_of_row, manifest.visits(rows), canvases.readable())
    total_steps = stages[-1].end
    eval_every = steps_between_evaluations(recipe.eval, validation, total_steps)

    # Model: weights are drawn from the seed, then replaced by those asked for.
    torch.manual_seed(train.seed)
    with stage(f"building {recipe.backbone.name} (weights: {recipe.continue_from or recipe.backbone.weights})"):
        model, parent = open_parent(recipe) if recipe.continue_from else (build_teacher(recipe, opening), None)
        centres = ClassCentres(
            len(classes),
            recipe.neck.dim,
            per_class=recipe.head.centres_per_class,
            sample_rate=recipe.head.sample_rate,
        )
    if parent is not None:
        inherit_centres(
            centres,
            parent,
            model,
            classes=classes,
            files=files,
            class_of_image=class_of_row,
            workers=train.workers,
        )
    model.flip, model.scales = recipe.inference.flip, recipe.inference.scales
    average = copy.deepcopy(model).requires_grad_(False) if train.ema_decay is not None else None
    moments = Moments(model.dim)
    parts = {"model": model, "head": centres, "moments": moments}
    parts |= {"average": average} if average is not None else {}
    trained = nn.ModuleDict(parts).to(device).to(memory_format=torch.channels_last)
    suit_convolutions(trained, device)
    set_allocator(sum(parameter.nbytes for parameter in trained.parameters()))
    first_step = run.last_step() if resume else 0
    run.drop_metrics_after(first_step)
    size_K = class_sizes(classes, manifest)
    finished = model if average is None else average

    def validate() -> Evaluated:
        return evaluate(
            finished,
            validation,
            batch_size=recipe.eval.batch_size,
            workers=train.workers,
            device=device,
            precision=precision,
        )

    scaler = loss_scaler(device, precision)
    started, evaluated = time.monotonic(), None
    with stop_request() as stop, TrainingLog(run, first_step=first_step, work_S=work_of(stages)) as training_log:
        for number, current in enumerate(stages):
            if first_step > current.end:
                continue
            # A stage: what it trains at which rates, on images of which size.
            settings = current.recipe
            image, optim, head = settings.image, settings.optim, settings.head
            smallest, largest = head.class_margins or (head.margin, head.margin)
            base_K = class_margins(size_K, smallest=smallest, largest=largest).to(device)
            for network in (model, average):
                if network is not None:
                    network.set_input_size(image.size_px, image.patch_stride)
                    network.keep_aspect = image.keep_aspect
            model.require_view_sizes(image.view_px(0.0), image.view_px())
            freeze(settings, model, centres)
            warn_if_lone_images(model, current.order.batch_size)
            if current.begin <= first_step < current.end:
                warn_if_hopeless(
                    model,
                    name=recipe.backbone.name,
                    size_px=current.view_px(current.end - 1),
                    num_images=sum(one.images_from(first_step) for one in stages),
                    device=device,
                    precision=precision,
                    instead="train on a machine with an NVIDIA GPU, or with --recipe grocery_cpu on two CPU cores",
                )
            parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
            optimizers = build_optimizers(
                model.backbone, model.neck, centres, optim, sparse_head=centres.sparse, precision=precision
            )
            if first_step > current.begin:
                # Checkpoints of an earlier version hold no mean, which then counts from here on.
                state = load_checkpoint(run, model=trained, optimizers=optimizers, optional=("moments.mean_D",))
                resume_scale(scaler, state)
                if first_step == current.end and number + 1 < len(stages):
                    continue
            if not np.array_equal(canvases.shapes_N2, current.shapes_N2):
                del canvases
                with stage(f"reading {len(rows)} training images"):
                    canvases = open_training_canvases(settings.train, files, current.shapes_N2)
            if current.name:
                log.info("stage %s: steps %d to %d of %d", current.name, current.begin, current.end, total_steps)

            begin = max(first_step, current.begin)
            samples = current.samples(begin)
            batches = canvases.batches([image_B for image_B, _ in samples])
            for step, ((image_B, view_B), batch) in enumerate(zip(samples, batches, strict=True), start=begin):
                view_B = view_B[np.isin(image_B, batch.image_B)]  # of the images that could be decoded
                stage_step = step - current.begin
                epoch = current.order.epoch(stage_step)
                margin_K = margins_at(
                    epoch - current.order.first_epoch,
                    base_K,
                    growth_per_epoch=head.margin_growth_per_epoch,
                    margin_max=head.margin_max,
                )
                factor = rate_factor(
                    stage_step,
                    steps_per_epoch=current.order.steps_per_epoch,
                    total_steps=current.end - current.begin,
                    section=optim,
                )
                set_rates(optimizers, factor)
                seed_step(train.seed, step)

                # One optimiser step over `accumulate_steps` micro-batches.
                loss_sum = 0.0
                for micro in micro_batches(model, batch.image_B.size, settings.train.accumulate_steps):
                    image_B = batch.image_B[micro]
                    views = draw_views(settings.augment, seed=train.seed, image_B=image_B, view=view_B[micro])
                    canvas_BCHW = batch.canvas_BCHW[torch.from_numpy(micro)].to(device)
                    height, width = canvas_BCHW.shape[2:]
                    image_BCHW = render_views(canvas_BCHW, views, current.view_shape(step, (height, width)))
                    label_TB = torch.from_numpy(class_of_row[image_B]).to(device)[None]
                    share_TB = torch.ones_like(label_TB, dtype=torch.float32)
                    if settings.mix.mixes:
                        other_BCHW = image_BCHW.roll(-1, dims=0)
                        image_BCHW, mixed_B = mix_views(
                            image_BCHW, other_BCHW, settings.mix, seed=train.seed, image_B=image_B, view=view_B[micro]
                        )
                        label_TB = torch.cat([label_TB, label_TB.roll(-1, dims=1)])
                        share_TB = torch.stack([1.0 - mixed_B, mixed_B])
                    # A weight is used once in a pass: autocast would keep its bf16 copy for nothing.
                    with autocast(device, precision, cache_enabled=False):
                        embedding_BD = model(image_BCHW)
                    moments.add(embedding_BD, step=step)
                    cosine_BK, column_TB = centres(embedding_BD, label_TB)
                    loss = margin_loss(
                        cosine_BK,
                        column_TB,
                        margin=margin_K[label_TB],
                        scale=head.scale,
                        kind=head.kind,
                        share_TB=share_TB,
                    )
                    share = micro.size / batch.image_B.size
                    scaler.scale(loss * share).backward()
                    loss_sum += loss.item() * share
                norm = take_step(
                    optimizers, parameters, loss=loss_sum, step=step, clip_norm=train.clip_norm, scaler=scaler
                )
                if average is not None and train.ema_decay is not None:
                    move_average(average, model, decay=min(train.ema_decay, (1 + step) / (10 + step)))

                done = step + 1
                val_map = evaluated.scores.map if evaluated else None
                shown = f"loss {loss_sum:.3f}" + ("" if val_map is None else f"  val mAP {val_map:.3f}")
                training_log.step(done, shown, images=batch.image_B.size)
                if done % 10 == 0 or done == total_steps:
                    training_log.scalars(
                        done,
                        {
                            "epoch": epoch,
                            "loss": loss_sum,
                            "margin": float(margin_K.max()),
                            "lr": optim.lr * factor,
                            "gradient_norm": norm,
                        },
                    )
                if eval_every and (done % eval_every == 0 or done == total_steps):
                    evaluated = validate()
                    freeze(settings, model, centres)
                    found = evaluated.scores.figures
                    training_log.scalars(done, {f"val_{key}": found[key] for key in ("map", "recall_at_1", "mp_at_5")})
                stopped = stop.signum is not None
                every = train.checkpoint_every_steps
                if stopped or (every and (done % every == 0 or done == total_steps)):
                    save_checkpoint(
                        run,
                        step=done,
                        model=trained,
                        optimizers=optimizers,
                        keep=train.keep_checkpoints,
                        state={"loss_scale": scaler.state_dict()},
                    )
                if stop.signum is not None:
                    raise Interrupted(
                        stop.signum,
                        f"step {done} of {total_steps} kept in {run.path}, "
                        f"continue with `edgeembed teacher-train --resume {run.path}`",
                    )

    # Result: the network without its class centres, which are kept beside it for distillation and more training.
    if eval_every and evaluated is None:  # stopped after its last step
        evaluated = validate()
    with stage(f"saving {run.path}"):
        if any(parameter.requires_grad for parameter in model.neck.parameters()):  # else the space keeps its id
            order_dimensions(finished, centres, moments)
        identity = space_id(finished)
        save_tensors(run.path / "head.safetensors", {"centres": centres.weight})
        write_json(run.path / "classes.json", {"classes": [list(name) for name in classes]})
        origin = ModelOrigin(
            role="teacher",
            space_id=identity,
            data=TrainingData(
                fingerprint=manifest.fingerprint,
                manifest=str(manifest.source),
                images=len(rows),
                classes=len(classes),
                unreadable=len(canvases.unreadable),
            ),
            weights=recipe.continue_from or name_starting_weights(recipe.backbone.name, recipe.backbone.weights),
            precision=precision,
            device=device,
        )
        seconds = time.monotonic() - started
        result = TeacherEvaluation(
            **validation.counts().model_dump(),
            scores=evaluated.scores if evaluated else None,
            spread=evaluated.spread if evaluated else None,
            seconds=round(seconds, 1),
            steps=total_steps,
        )
        finish_run(run, finished, origin, evaluation=result)
    if evaluated is not None:
        warn_if_collapsed(str(run.path), evaluated.spread, validation)
    if parent is not None:
        report_space(parent, identity)
    return result


def require_sizes(recipe: TeacherRecipe) -> None:
    """Raises UserError where a stage asks for images of a size that the backbone does not take."""
    for _, settings in recipe.resolve_stages():
        if settings.image.patch_stride is None and not settings.image.keep_aspect:
            require_input_size(recipe.backbone.name, settings.image.size_px)


def build_teacher(recipe: TeacherRecipe, opening: TeacherRecipe) -> EmbeddingModel:
    """The network of a recipe, for the image size of its first stage."""
    return build_model(
        recipe.backbone.name,
        weights=recipe.backbone.weights,
        size_px=opening.image.size_px,
        patch_stride=opening.image.patch_stride,
        dim=recipe.neck.dim,
        dropout=recipe.neck.dropout,
        batch_norm=recipe.neck.batch_norm,
        pooling=recipe.backbone.pooling,
        output_stride=recipe.backbone.output_stride,
        grad_checkpointing=recipe.train.grad_checkpointing,
    )


def freeze(recipe: TeacherRecipe, model: EmbeddingModel, centres: ClassCentres) -> None:
    """Puts everything into training mode but what a stage freezes, which computes as in evaluation."""
    parts = [(model.backbone, recipe.backbone.frozen), (model.neck, recipe.neck.frozen), (centres, recipe.head.frozen)]
    freeze_parts(parts)
    model.training = centres.training = True
    if recipe.backbone.frozen_blocks:
        freeze_blocks(model.backbone, recipe.backbone.frozen_blocks)
    if recipe.backbone.frozen_batch_norm:
        freeze_batch_norm(model.backbone)
