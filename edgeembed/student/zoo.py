"""Builds students: the aliases of `aliases.py`, and any other timm model by its timm name."""

from __future__ import annotations

import functools
import logging

from timm.utils.model import reparameterize_model
from torch import nn

from edgeembed.errors import UserError
from edgeembed.network.backbone import require_blocks, require_input_size
from edgeembed.network.model import EmbeddingModel, build_model
from edgeembed.network.published_weights import require_available
from edgeembed.student.aliases import num_attention_blocks_of, num_blocks_of, timm_model_name

log = logging.getLogger(__name__)

NEEDS_FIXED_SIZE_224 = ("efficientformerv2",)
"""Families with tables of attention biases for one input size, in the published weights too."""


def require_student_size(student: str, size_px: int) -> None:
    """Raises UserError, before anything is built or downloaded, for an input size that a student does not accept."""
    name = timm_model_name(student)
    if name.startswith(NEEDS_FIXED_SIZE_224) and size_px != 224:
        raise UserError(f"image.size_px = {size_px}: {student} takes 224 only")
    require_input_size(name, size_px)


def require_student_blocks(student: str, blocks: int | None, attention_blocks: int | None) -> None:
    """Raises UserError, before anything is built or downloaded, for blocks that cannot be kept or added."""
    require_blocks(timm_model_name(student), blocks, attention_blocks, weights_key="student.weights")


def require_student_weights(student: str, weights: str) -> None:
    """Raises UserError, within seconds, for `pretrained` weights that cannot be loaded on this machine now."""
    if weights != "auto":  # it falls back to random weights
        require_available(timm_model_name(student), weights, key="student.weights")


def build_student(
    student: str,
    *,
    weights: str,
    size_px: int,
    dim: int,
    blocks: int | None = None,
    attention_blocks: int | None = None,
    dropout: float = 0.0,
    grad_checkpointing: bool = False,
) -> EmbeddingModel:
    """Builds a student with a projection to the teacher's dimension.

    `weights`: `auto` (pretrained if they are on this machine or can be downloaded, else random with a warning),
    `pretrained`, `none`, or a file. `blocks`: how many of the first blocks to keep; None: as many as the alias says,
    else all. `attention_blocks`: how many transformer blocks to add; None: as many as the alias says, else none.
    """
    name = timm_model_name(student)
    if name.startswith(NEEDS_FIXED_SIZE_224):
        require_student_size(student, size_px)
    build = functools.partial(
        build_model,
        name,
        size_px=size_px,
        dim=dim,
        blocks=blocks or num_blocks_of(student),
        attention_blocks=attention_blocks or num_attention_blocks_of(student),
        dropout=dropout,
        grad_checkpointing=grad_checkpointing,
        weights_key="student.weights",
    )
    if weights != "auto":
        return build(weights=weights)
    # Random where published weights are neither on this machine nor can be downloaded, or there are none.
    try:
        return build(weights="pretrained")
    except UserError as error:
        log.warning("starting from random weights, which recipe scratch is made for: %s", error)
        return build(weights="none")


def fuse(model: nn.Module) -> nn.Module:
    """Returns a copy with the training branches of FastViT, RepViT or MobileOne merged: an equal function."""
    fused = reparameterize_model(model, inplace=False)
    assert isinstance(fused, nn.Module)
    return fused.eval()
