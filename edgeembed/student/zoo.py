"""Students: short names for networks worth putting on a device, and any other timm model by its own name."""

from __future__ import annotations

import functools
import logging

import torch
from timm.utils.model import reparameterize_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgeembed.errors import UserError
from edgeembed.network.backbone import require_input_size
from edgeembed.network.eval_mode import eval_mode
from edgeembed.network.initial_weights import name_starting_weights
from edgeembed.network.model import EmbeddingModel, Network, build_model
from edgeembed.student.names import timm_name

log = logging.getLogger(__name__)

NEEDS_FIXED_SIZE_224 = ("efficientformerv2",)
"""Families whose attention biases are tabulated for one input size, as their published weights are."""


def require_student_size(student: str, size_px: int) -> None:
    """Raises UserError, before anything is built or downloaded, for an input size that a student does not take."""
    name = timm_name(student)
    if name.startswith(NEEDS_FIXED_SIZE_224) and size_px != 224:
        raise UserError(f"image.size_px = {size_px}: {student} takes 224 only")
    require_input_size(name, size_px)


def build_student(
    student: str, *, weights: str, size_px: int, dim: int, dropout: float = 0.0, grad_checkpointing: bool = False
) -> EmbeddingModel:
    """A student with its projection to the teacher's dimension.

    `weights`: `auto` (pretrained where they can be had, else random with a warning), `pretrained`, `none`, or a file.
    """
    name = timm_name(student)
    if name.startswith(NEEDS_FIXED_SIZE_224):
        require_student_size(student, size_px)
    build = functools.partial(
        build_model,
        name,
        size_px=size_px,
        dim=dim,
        dropout=dropout,
        grad_checkpointing=grad_checkpointing,
        weights_key="student.weights",
    )
    if weights != "auto":
        model = build(weights=weights)
    else:
        weights = "pretrained"
        try:
            model = build(weights=weights)
        except UserError as error:
            log.warning("starting from random weights, which recipe scratch is made for: %s", error)
            weights = "none"
            model = build(weights=weights)
    model.starting_weights = name_starting_weights(name, weights)
    return model


def fuse(model: nn.Module) -> nn.Module:
    """Folds the parallel training branches of FastViT, RepViT, MobileOne and the like; the function stays the same."""
    fused = reparameterize_model(model, inplace=False)
    assert isinstance(fused, nn.Module)
    return fused.eval()


def count_macs(model: Network) -> int:
    """Multiply-accumulates of one image through convolutions, linear layers and attention products."""
    counter = FlopCounterMode(display=False)
    with eval_mode(model), counter, torch.no_grad():
        model(torch.zeros(1, 3, model.size_px, model.size_px))
    return counter.get_total_flops() // 2
