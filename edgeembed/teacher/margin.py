"""Angular-margin heads: they pull each embedding to its class centre and are thrown away after training."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIN_SQUARED_FLOOR = 1e-12  # keeps the gradient of sqrt finite at cos = +-1


def arcface_loss(cosine_BK: Tensor, label_B: Tensor, *, margin: float, scale: float) -> Tensor:
    """ArcFace (Deng et al. 2019, eq. 3): softmax cross-entropy with `margin` radians added to the true class's angle.

    Where theta + m would pass pi the target falls back to cos(theta) - m sin(m), which keeps it decreasing.
    `cosine_BK` in [-1, 1] is taken to float32; the gradient is finite at both ends. Mean over the batch.
    """
    cosine_BK = cosine_BK.float().clamp(-1.0, 1.0)
    target_B1 = cosine_BK.gather(1, label_B[:, None])
    sine_B1 = (1.0 - target_B1.square()).clamp_min(SIN_SQUARED_FLOOR).sqrt()
    rotated_B1 = target_B1 * math.cos(margin) - sine_B1 * math.sin(margin)
    fallback_B1 = target_B1 - margin * math.sin(margin)
    shifted_B1 = torch.where(target_B1 > math.cos(math.pi - margin), rotated_B1, fallback_B1)
    logits_BK = scale * cosine_BK.scatter(1, label_B[:, None], shifted_B1)
    return F.cross_entropy(logits_BK, label_B)


def margin_at(epoch: float, *, margin: float, growth_per_epoch: float, margin_max: float | None) -> float:
    """Dynamic margin (Huang & Li 2022): grows with the epoch up to a ceiling; not different from class to class."""
    grown = margin + growth_per_epoch * epoch
    return grown if margin_max is None else min(grown, max(margin, margin_max))


class ClassCentres(nn.Module):
    """One direction a class; cosine of each embedding to each centre, in float32 whatever autocast says."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, dim))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, embedding_BD: Tensor) -> Tensor:
        with torch.autocast(embedding_BD.device.type, enabled=False):
            return embedding_BD.float() @ F.normalize(self.weight.float(), dim=1).T
