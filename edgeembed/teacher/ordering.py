"""Turns a finished teacher's space so that its first numbers say most: short embeddings are then prefixes.

A rotation keeps every cosine, and a linear neck takes it up without a trace. Its axes are the principal axes of the
embeddings, the most telling first, so that the first d numbers are the best d that a projection gives. Kusupati et al.
(2022) train for short prefixes; this costs nothing, and holds for every student and every index of the space.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from edgeembed.teacher.margin import ClassCentres
from edgeembed.teacher.model import EmbeddingModel

log = logging.getLogger(__name__)


class Moments(nn.Module):
    """Running second moments of the embeddings of training steps, (D, D), kept with the checkpoints."""

    second_DD: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("second_DD", torch.zeros(dim, dim))

    @torch.no_grad()
    def add(self, embedding_BD: Tensor, *, step: int) -> None:
        """Old steps fade: the last thousand or so count, fewer at the start."""
        embedding_BD = embedding_BD.float()
        weight = 1.0 - min(0.999, (1 + step) / (10 + step))
        self.second_DD.lerp_(embedding_BD.T @ embedding_BD / len(embedding_BD), weight)


def order_dimensions(model: EmbeddingModel, centres: ClassCentres, moments: Moments) -> None:
    """Rotates neck and centres in place and marks the model as ordered; not where the neck ends in batch norm."""
    projection = model.neck.projection
    if not isinstance(model.neck.batch_norm, nn.Identity):
        log.info("dimensions are not ordered by weight: the neck ends in batch norm")
        return
    with torch.no_grad():
        rotation_DD = principal_axes(moments.second_DD)
        projection.weight.copy_((rotation_DD @ projection.weight.cpu().double()).float())
        projection.bias.copy_((rotation_DD @ projection.bias.cpu().double()).float())
        centres.weight.copy_((centres.weight.cpu().double() @ rotation_DD.T).float())
    model.ordered = True


def principal_axes(second_DD: Tensor) -> Tensor:
    """Rows are the eigenvectors, largest first: (D, D) float64 on the CPU, as Apple's GPUs have no float64; of an
    axis and its opposite the one whose largest number is positive.
    """
    _, axis_DD = torch.linalg.eigh(second_DD.detach().cpu().double())
    axis_DD = axis_DD.flip(1).T
    largest_D1 = axis_DD.gather(1, axis_DD.abs().argmax(dim=1, keepdim=True))
    pointing_DD: Tensor = axis_DD * largest_D1.sign()
    return pointing_DD
