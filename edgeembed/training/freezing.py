"""Which parts of a teacher learn, and the running average of its weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeembed.network.blocks import freeze_blocks
from edgeembed.network.model import EmbeddingModel
from edgeembed.teacher.margin import ClassCentres
from edgeembed.teacher.recipe import TeacherRecipe


def set_learning(recipe: TeacherRecipe, model: EmbeddingModel, centres: ClassCentres) -> None:
    """Puts everything into training mode but what a stage freezes, which computes as in evaluation."""
    for part, frozen in (
        (model.backbone, recipe.backbone.frozen),
        (model.neck, recipe.neck.frozen),
        (centres, recipe.head.frozen),
    ):
        part.requires_grad_(not frozen).train(not frozen)
    model.training = True
    centres.training = True
    if recipe.backbone.frozen_blocks:
        freeze_blocks(model.backbone, recipe.backbone.frozen_blocks)
    if recipe.backbone.frozen_batch_norm:
        for module in model.backbone.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, *, decay: float) -> None:
    """Moves a copy's weights and statistics towards the model's: average <- decay * average + (1 - decay) * model."""
    held, new = list(average.state_dict().values()), list(model.state_dict().values())
    floats = [pair for pair in zip(held, new, strict=True) if pair[0].is_floating_point()]
    torch._foreach_lerp_([pair[0] for pair in floats], [pair[1] for pair in floats], 1.0 - decay)
    for old, value in zip(held, new, strict=True):
        if not old.is_floating_point():
            old.copy_(value)
