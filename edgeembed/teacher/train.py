"""Trains a teacher: a large tower, a 64-d neck and a margin head, in one loop that reads top to bottom."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeembed.checkpoint import load_checkpoint, save_checkpoint, save_tensors
from edgeembed.config import to_yaml
from edgeembed.data.augment import draw_views, render_views
from edgeembed.data.loader import Order, open_squares
from edgeembed.data.manifest import Manifest, codes
from edgeembed.errors import CheckFailed, UserError
from edgeembed.progress import TrainingLog, stage
from edgeembed.run import Interrupted, RunFolder, stop_request, write_json
from edgeembed.teacher.device import keep_freed_memory, pick_device, seed_step
from edgeembed.teacher.evaluate import evaluate
from edgeembed.teacher.margin import ClassCentres, arcface_loss, margin_at
from edgeembed.teacher.model import build_model, save_model, space_id
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.teacher.schedule import build_optimizer, rate_factor, set_rates

log = logging.getLogger(__name__)


def train_teacher(recipe: TeacherRecipe, manifest: Manifest, run: RunFolder, *, resume: bool = False) -> dict[str, Any]:
    """Runs a recipe and leaves a finished run folder; returns what eval.json holds.

    Raises UserError for data that cannot be trained on, CheckFailed on a loss that is not finite, and
    Interrupted after a stop signal, with a checkpoint written.
    """
    # Data: labelled training images as decoded squares, and the order in which the run visits them.
    rows = manifest.rows("train")
    classes = manifest.class_names(rows)
    if len(classes) < 2:
        raise UserError(f"the train split has {len(classes)} labelled classes, a margin head needs at least 2")
    class_of_row = codes(classes, manifest, rows)
    rows, class_of_row = rows[class_of_row >= 0], class_of_row[class_of_row >= 0]
    manifest.require_files()
    run.open(config_yaml=to_yaml(recipe), resume=resume)
    if run.finished:
        log.warning("%s: already finished, nothing to resume", run.path)
        return dict(json.loads((run.path / "eval.json").read_text()))

    train, image = recipe.train, recipe.image
    device = pick_device(train.device)
    canvas_px = round(image.view_px() * image.canvas_factor)
    batch_size = train.batch_size * train.accumulate_steps
    visits = min(train.epochs * len(rows), (train.max_steps or 2**62) * batch_size)
    with stage(f"reading {len(rows)} training images of {len(classes)} classes"):
        files = [manifest.files[row] for row in rows]
        squares = open_squares(files, size_px=canvas_px, workers=train.workers, cache=train.cache, visits=visits)
    readable = np.array([i for i in range(len(rows)) if i not in squares.unreadable], dtype=np.int64)
    order = Order(num_images=len(readable), batch_size=min(batch_size, len(readable)), seed=train.seed)
    total_steps = min(train.epochs * order.steps_per_epoch, train.max_steps or 2**62)
    eval_every = math.ceil(total_steps / 5) if recipe.eval.every_steps is None else recipe.eval.every_steps

    # Model: weights are drawn from the seed, then replaced by those asked for.
    torch.manual_seed(train.seed)
    with stage(f"building {recipe.backbone.name} (weights: {recipe.backbone.weights})"):
        model = build_model(
            recipe.backbone.name,
            weights=recipe.backbone.weights,
            size_px=image.size_px,
            dim=recipe.neck.dim,
            dropout=recipe.neck.dropout,
            grad_checkpointing=train.grad_checkpointing,
        )
    centres = ClassCentres(len(classes), recipe.neck.dim)
    trained = nn.ModuleDict({"model": model, "head": centres}).to(device).to(memory_format=torch.channels_last)
    parameters = list(trained.parameters())
    keep_freed_memory(sum(parameter.nbytes for parameter in parameters))
    optimizer = build_optimizer(model.backbone, model.neck, centres, recipe.optim)
    state = load_checkpoint(run, model=trained, optimizer=optimizer) if resume else None
    first_step = state["step"] if state else 0
    run.forget_metrics_after(first_step)

    def save(step: int) -> None:
        save_checkpoint(run, step=step, model=trained, optimizer=optimizer, keep=train.keep_checkpoints, state={})

    def score() -> dict[str, Any]:
        scores = evaluate(
            model,
            manifest,
            "val",
            size_px=image.size_px,
            batch_size=recipe.eval.batch_size,
            workers=train.workers,
            device=device,
            precision=train.precision,
        )
        return dataclasses.asdict(scores)

    if eval_every and not manifest.rows("val").size:
        log.warning("the manifest has no val split: training goes on without evaluation")
        eval_every = 0

    started, scores, note = time.monotonic(), None, ""
    trained.train()
    with (
        stop_request() as stop,
        TrainingLog(run, first_step=first_step, total_steps=total_steps, batch_size=batch_size) as training_log,
    ):
        batches = squares.batches([readable[wanted] for wanted in order.wanted(first_step, total_steps)])
        for step, batch in enumerate(batches, start=first_step):
            epoch = order.epoch(step)
            margin = margin_at(
                epoch,
                margin=recipe.head.margin,
                growth_per_epoch=recipe.head.margin_growth_per_epoch,
                margin_max=recipe.head.margin_max,
            )
            factor = rate_factor(
                step, steps_per_epoch=order.steps_per_epoch, total_steps=total_steps, section=recipe.optim
            )
            set_rates(optimizer, factor)
            view_px = image.view_px(step / total_steps)
            if recipe.backbone.freeze_from_epoch is not None:
                model.backbone.requires_grad_(epoch < recipe.backbone.freeze_from_epoch)
            seed_step(train.seed, step)

            # One optimiser step over `accumulate_steps` micro-batches.
            loss_sum = 0.0
            for micro in np.array_split(np.arange(batch.image_B.size), train.accumulate_steps):
                if micro.size == 0:
                    continue
                image_B = batch.image_B[micro]
                views = draw_views(recipe.augment, seed=train.seed, image_B=image_B, view=epoch)
                canvas_BCHW = batch.canvas_BCHW[torch.from_numpy(micro)].to(device)
                image_BCHW = render_views(canvas_BCHW, views, view_px)
                label_B = torch.from_numpy(class_of_row[image_B]).to(device)
                with torch.autocast(device, torch.bfloat16, enabled=train.precision == "bf16"):
                    cosine_BK = centres(model(image_BCHW))
                loss = arcface_loss(cosine_BK, label_B, margin=margin, scale=recipe.head.scale)
                share = micro.size / batch.image_B.size
                (loss * share).backward()
                loss_sum += loss.item() * share
            norm = nn.utils.clip_grad_norm_(parameters, train.clip_norm)
            if not (math.isfinite(loss_sum) and bool(torch.isfinite(norm))):
                raise CheckFailed(
                    f"step {step}: loss {loss_sum}, gradient norm {norm.item()}: training stopped, the last checkpoint "
                    "is kept: lower optim.lr or set train.precision=fp32"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            done = step + 1
            note = f"loss {loss_sum:.3f}" + (f"  val mAP {scores['map']:.3f}" if scores else "")
            training_log.step(done, note)
            if done % 10 == 0 or done == total_steps:
                training_log.scalars(
                    done,
                    {
                        "epoch": epoch,
                        "loss": loss_sum,
                        "margin": margin,
                        "lr": recipe.optim.lr * factor,
                        "gradient_norm": norm.item(),
                    },
                )
            if eval_every and (done % eval_every == 0 or done == total_steps):
                scores = score()
                training_log.scalars(done, {f"val_{key}": scores[key] for key in ("map", "recall_at_1", "mp_at_5")})
            if stop.signum is not None:
                save(done)
                raise Interrupted(
                    stop.signum, f"step {done} of {total_steps} kept in {run.path}, continue with --resume"
                )
            if train.checkpoint_every_steps and (done % train.checkpoint_every_steps == 0 or done == total_steps):
                save(done)

    # Result: the network without its class centres, which are kept beside it for distillation and more training.
    with stage(f"saving {run.path}"):
        save_tensors(run.path / "head.safetensors", {"centres": centres.weight})
        write_json(run.path / "classes.json", {"classes": [list(name) for name in classes]})
        result = {
            "split": "val",
            "scores": scores,
            "seconds": round(time.monotonic() - started, 1),
            "steps": total_steps,
        }
        write_json(run.path / "eval.json", result)
        save_model(
            run,
            model,
            {
                "role": "teacher",
                "space_id": space_id(model),
                "data": {
                    "fingerprint": manifest.fingerprint,
                    "manifest": str(manifest.source),
                    "images": len(rows),
                    "classes": len(classes),
                    "unreadable": len(squares.unreadable),
                },
                "weights": recipe.backbone.weights,
                "precision": train.precision,
            },
        )
    return result
