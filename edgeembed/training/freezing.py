"""Which parts of a teacher learn, and the running average of its weights."""

from __future__ import annotations

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
