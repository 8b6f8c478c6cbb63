"""Margin heads: losses that pull each embedding to the centre of its class. Only training needs them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeembed.config import MarginKind

SIN_SQUARED_FLOOR = 1e-30  # keeps the gradient of sqrt finite at cos = +-1


def margin_loss(
    cosine_BK: Tensor,
    label_TB: Tensor,
    *,
    margin: float | Tensor,
    scale: float,
    kind: MarginKind = "arcface",
    share_TB: Tensor | None = None,
) -> Tensor:
    """Softmax cross-entropy of `scale` times the cosines, where `margin` lowers the cosine of the true class.

    `arcface` adds the margin to its angle, in radians (Deng et al. 2019, eq. 3), `cosface` subtracts it from the cosine
    (Wang et al. 2018), `normface` has none (Wang et al. 2017). Labels are (B,), or (T, B) with shares (T, B) for mixed
    images of T classes each; `margin` is one number, or one per label. Returns the mean over the batch, computed in
    float32 or above; the gradient is finite also for cosines of -1 and 1.
    """
    cosine_BK = cosine_BK.to(torch.promote_types(cosine_BK.dtype, torch.float32))
    label_TB = label_TB.expand(1, -1) if label_TB.ndim == 1 else label_TB
    margin_TB = torch.as_tensor(margin, dtype=cosine_BK.dtype, device=cosine_BK.device).expand_as(label_TB)
    losses = []
    for label_B, margin_B in zip(label_TB, margin_TB, strict=True):
        # Rounding can leave a cosine just outside [-1, 1], where no angle exists.
        target_B = cosine_BK.gather(1, label_B[:, None]).squeeze(1).clamp(-1.0, 1.0)
        if kind == "arcface":
            target_B = add_angle(target_B, margin_B)
        elif kind == "cosface":
            target_B = target_B - margin_B
        # New logits for each of the T classes: the margin applies to one true class at a time.
        logits_BK = (scale * cosine_BK).scatter_(1, label_B[:, None], scale * target_B[:, None])
        losses.append(F.cross_entropy(logits_BK, label_B, reduction="none"))
    loss_TB = torch.stack(losses)
    # Of a mixed image: the losses of its classes, weighted by their shares (Zhang et al. 2018, mixup).
    return (loss_TB if share_TB is None else share_TB * loss_TB).sum(dim=0).mean()


def add_angle(cosine_B: Tensor, margin_B: Tensor) -> Tensor:
    """cos(theta + m); where theta + m would exceed pi, cos(theta) - m sin(m), which still falls with theta."""
    sine_B = (1.0 - cosine_B.square()).clamp_min(SIN_SQUARED_FLOOR).sqrt()
    # cos(theta + m) by the addition theorem, without acos, whose gradient is infinite at cosines of -1 and 1.
    rotated_B = cosine_B * margin_B.cos() - sine_B * margin_B.sin()
    # Beyond pi cos(theta + m) rises again: the loss would push an embedding further away from its centre.
    fallback_B = cosine_B - margin_B * margin_B.sin()
    # cos(theta) > cos(pi - m) holds where theta + m < pi.
    return torch.where(cosine_B > (math.pi - margin_B).cos(), rotated_B, fallback_B)


def dynamic_margins(epoch: float, margin_K: Tensor, *, growth_per_epoch: float, margin_max: float | None) -> Tensor:
    """Dynamic margins (Huang & Li 2022), (K,): `margin_K` plus `growth_per_epoch` times `epoch`, up to `margin_max`."""
    return (margin_K + growth_per_epoch * epoch).clamp_max(math.inf if margin_max is None else margin_max)


def class_margins(images_K: Sequence[int], *, smallest: float, largest: float) -> Tensor:
    """One margin per class, (K,): rare classes get larger ones (Ha et al. 2020, Landmark Recognition).

    A class of n images has the raw margin n ** -0.25; raw margins are scaled linearly so that the class with the most
    images gets `smallest` and the one with the fewest `largest`. Classes of equal size all get the mean of both.
    """
    raw_K = torch.tensor(images_K, dtype=torch.float64).clamp_min(1) ** -0.25
    low, high = raw_K.min(), raw_K.max()
    if low == high:
        return torch.full(raw_K.shape, (smallest + largest) / 2, dtype=torch.float32)
    return (smallest + (largest - smallest) * (raw_K - low) / (high - low)).float()


class ClassCentres(nn.Module):
    """Centres of classes, `per_class` each; an embedding is compared with the nearest centre of every class.

    With several centres the noise of a class can have centres apart (sub-centre ArcFace, Deng et al. 2020). With
    `sample_rate` below 1, a training step uses that share of the classes: those of its batch and others drawn at random
    (Partial FC, An et al. 2022). Its gradient is then sparse, so that SparseAdam updates no other rows.
    """

    def __init__(self, num_classes: int, dim: int, *, per_class: int = 1, sample_rate: float = 1.0) -> None:
        super().__init__()
        self.num_classes, self.per_class, self.sample_rate = num_classes, per_class, sample_rate
        self.weight = nn.Parameter(torch.empty(num_classes * per_class, dim))
        nn.init.xavier_uniform_(self.weight)

    @property
    def sparse(self) -> bool:
        """Whether training samples the classes, so that the gradient is sparse."""
        return self.sample_rate < 1.0

    def forward(self, embedding_BD: Tensor, label_TB: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines (B, K), in float32 or above also within autocast, and the labels as their columns, (T, B).

        K is the number of classes, or of those drawn for this step.
        """
        weight_RD: Tensor = self.weight
        if self.sparse and self.training:
            # Class numbers become columns of the S drawn classes, which are ascending.
            class_S = self.draw(label_TB)
            label_TB = torch.searchsorted(class_S, label_TB)
            # (S,) to (R,): the sub-centres of a class are neighbouring rows.
            row_R = (class_S[:, None] * self.per_class + torch.arange(self.per_class, device=class_S.device)).flatten()
            weight_RD = F.embedding(row_R, self.weight, sparse=True)
        # In bf16, cosines near 1 have steps of 0.004: times a scale of 30, that is 0.12 in a logit.
        with torch.autocast(embedding_BD.device.type, enabled=False):
            embedding_BD = embedding_BD.to(torch.promote_types(embedding_BD.dtype, torch.float32))
            cosine_BR = embedding_BD @ F.normalize(weight_RD, dim=1).T
        if self.per_class > 1:
            # (B, R) to (B, K): the nearest sub-centre of each class counts.
            cosine_BR = cosine_BR.unflatten(1, (-1, self.per_class)).amax(dim=2)
        return cosine_BR, label_TB

    def draw(self, label_TB: Tensor) -> Tensor:
        """Classes of one step, ascending: all of the batch, and others at random up to `sample_rate` of all classes."""
        priority_K = torch.rand(self.num_classes, device=label_TB.device)
        present = label_TB.unique()
        # Above every random priority, so that the classes of the batch are always drawn.
        priority_K[present] = 2.0
        count = max(len(present), round(self.sample_rate * self.num_classes))
        # Ascending, as searchsorted in `forward` needs.
        return priority_K.topk(count, sorted=False).indices.sort().values
