"""The networks of a teacher run, from the recipe's weights or from a finished teacher, and what each stage freezes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from edgeembed.network.backbone import require_blocks, require_input_size
from edgeembed.network.model import EmbeddingModel, build_model
from edgeembed.progress import stage
from edgeembed.teacher.images import LabelledImages
from edgeembed.teacher.margin import ClassCentres
from edgeembed.teacher.pca import Moments
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.teacher.stages import Stage
from edgeembed.teacher.warm_start import WarmStart, load_warm_start, warm_start_centres
from edgeembed.training.device import replace_slow_convolutions, set_allocator
from edgeembed.training.freezing import freeze_batch_norm, freeze_blocks, freeze_parts
from edgeembed.training.micro_batches import warn_if_batches_of_one
from edgeembed.training.optimizers import build_optimizers


@dataclass(frozen=True, kw_only=True)
class TeacherNetworks:
    """The embedding network in training, its class centres, and what is averaged beside them.

    `average`: the moving average of the weights, None where the recipe has none. `checkpointed`: all of them as one
    module, whose names and order are those of checkpoints. `warm_start`: the teacher that training continues from.
    `start`: a frozen copy of the network as training begins, None where no stage has `preserve.weight`.
    """

    model: EmbeddingModel
    centres: ClassCentres
    moments: Moments
    average: EmbeddingModel | None
    checkpointed: nn.ModuleDict
    warm_start: WarmStart | None
    start: EmbeddingModel | None

    @property
    def result(self) -> EmbeddingModel:
        """The network that is evaluated and that the run ends with."""
        return self.model if self.average is None else self.average


def build_networks(recipe: TeacherRecipe, images: LabelledImages, device: str) -> TeacherNetworks:
    """Builds the networks of a run and moves them to a device; random weights are drawn from torch's generator."""
    _, first_stage = recipe.resolve_stages()[0]
    with stage(f"building {recipe.backbone.name} (weights: {recipe.continue_from or recipe.backbone.weights})"):
        if recipe.continue_from:
            model, warm_start = load_warm_start(recipe)
        else:
            model, warm_start = build_teacher(recipe, first_stage), None
        centres = ClassCentres(
            len(images.classes),
            recipe.neck.dim,
            per_class=recipe.head.centres_per_class,
            sample_rate=recipe.head.sample_rate,
        )
    # Still on the CPU, where images of new classes are embedded for their centres.
    if warm_start is not None:
        warm_start_centres(
            centres,
            warm_start,
            model,
            classes=images.classes,
            files=images.files,
            class_of_image=images.class_N,
            workers=recipe.train.workers,
        )
    # Set before the copy, so that the average has both too.
    model.flip, model.scales = recipe.inference.flip, recipe.inference.scales
    average = copy.deepcopy(model).requires_grad_(False) if recipe.train.ema_decay is not None else None
    preserved = any(settings.preserve.weight for _, settings in recipe.resolve_stages())
    start = copy.deepcopy(model).requires_grad_(False).eval() if preserved else None
    moments = Moments(model.dim)
    parts = {"model": model, "head": centres, "moments": moments}
    parts |= {"average": average} if average is not None else {}
    # channels_last, as views are rendered: convolutions need not convert them.
    checkpointed = nn.ModuleDict(parts).to(device).to(memory_format=torch.channels_last)
    replace_slow_convolutions(checkpointed, device)
    if start is not None:
        # No part of checkpoints: a resumed run builds it again from the same weights.
        replace_slow_convolutions(start.to(device).to(memory_format=torch.channels_last), device)
    set_allocator(sum(parameter.nbytes for parameter in checkpointed.parameters()))
    return TeacherNetworks(
        model=model,
        centres=centres,
        moments=moments,
        average=average,
        checkpointed=checkpointed,
        warm_start=warm_start,
        start=start,
    )


def build_teacher(recipe: TeacherRecipe, first_stage: TeacherRecipe) -> EmbeddingModel:
    """The network of a recipe, for the image size of its first stage."""
    return build_model(
        recipe.backbone.name,
        weights=recipe.backbone.weights,
        size_px=first_stage.image.size_px,
        patch_stride=first_stage.image.patch_stride,
        dim=recipe.neck.dim,
        dropout=recipe.neck.dropout,
        batch_norm=recipe.neck.batch_norm,
        pooling=recipe.backbone.pooling,
        output_stride=recipe.backbone.output_stride,
        blocks=recipe.backbone.blocks,
        grad_checkpointing=recipe.train.grad_checkpointing,
    )


def require_input_sizes(recipe: TeacherRecipe) -> None:
    """Raises UserError where the backbone does not take the image size of a stage, or has too few blocks."""
    require_blocks(recipe.backbone.name, recipe.backbone.blocks)
    for _, settings in recipe.resolve_stages():
        # Only plain squares can be tested before the network is built.
        if settings.image.patch_stride is None and not settings.image.keep_aspect:
            require_input_size(recipe.backbone.name, settings.image.size_px)


def set_up_stage(networks: TeacherNetworks, current: Stage) -> list[torch.optim.Optimizer]:
    """Sets the networks to the image size of a stage, freezes what it freezes, and returns optimisers of the rest.

    Raises UserError where the network does not take the sizes of the stage's training views.
    """
    settings, model, centres = current.recipe, networks.model, networks.centres
    image = settings.image
    for network in (model, networks.average, networks.start):
        if network is not None:
            network.set_input_size(image.size_px, image.patch_stride)
            network.keep_aspect = image.keep_aspect
    model.require_view_sizes(image.view_px(0.0), image.view_px())
    freeze(settings, model, centres)
    warn_if_batches_of_one(model, current.order.batch_size)
    return build_optimizers(
        model.backbone,
        model.neck,
        centres,
        settings.optim,
        sparse_head=centres.sparse,
        precision=settings.train.precision,
    )


def freeze(recipe: TeacherRecipe, model: EmbeddingModel, centres: ClassCentres) -> None:
    """Puts the networks into training mode, except what a stage's recipe freezes: that computes as in evaluation."""
    parts = [(model.backbone, recipe.backbone.frozen), (model.neck, recipe.neck.frozen), (centres, recipe.head.frozen)]
    # Whole parts first: it puts them into training mode, which would undo the partial freezing below.
    freeze_parts(parts)
    # The modes of the containers alone: they decide on test-time averaging and the sampling of classes.
    model.training = centres.training = True
    if recipe.backbone.frozen_blocks:
        freeze_blocks(model.backbone, recipe.backbone.frozen_blocks)
    if recipe.backbone.frozen_batch_norm:
        freeze_batch_norm(model.backbone)
