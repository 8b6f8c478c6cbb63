"""Distillation losses of one batch. The student must land in the teacher's space, not merely copy its distances.

`student_BD` and `teacher_BD` are unit vectors. Every function returns a mean over the batch.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

MIN_VARIANCE_SHARE = 0.01
"""Of the mean variance of all dimensions: a dimension without variance would have an infinite weight."""


def cosine_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """1 - cos(s, t): regression onto the teacher, which has most of the effect (CLIP-KD 2023, AML 2022)."""
    return 1.0 - (student_BD * teacher_BD).sum(dim=1).mean()


def cross_relation_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """MSE of S T^t and T T^t: a student vector is as similar to every teacher vector as its teacher's is (RAML)."""
    return F.mse_loss(student_BD @ teacher_BD.T, teacher_BD @ teacher_BD.T)


def self_relation_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """MSE of S S^t and T T^t: similarities within the student's batch equal the teacher's (RAML, RKD)."""
    return F.mse_loss(student_BD @ student_BD.T, teacher_BD @ teacher_BD.T)


def standardised_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """MSE of embeddings whose dimensions are divided by the teacher's standard deviation in this batch.

    So dimensions of low variance count as much as others. PHI-S (2024) standardises targets with one scale for all
    dimensions, which here would only be a weight of the cosine loss. Variances below 1 % of their mean are raised to
    it. A batch of one image has no variance: all dimensions get that of random unit vectors, 1/D.
    """
    variance_D = teacher_BD.var(dim=0, correction=0)
    if len(teacher_BD) == 1:
        variance_D = variance_D + 1.0 / teacher_BD.shape[1]
    min_variance = MIN_VARIANCE_SHARE * variance_D.mean()
    # 1e-12: in a batch of equal targets every variance is 0.
    return ((student_BD - teacher_BD) ** 2 / variance_D.clamp_min(min_variance + 1e-12)).mean()


def anchor_kl_loss(student_BD: Tensor, teacher_BD: Tensor, anchor_KD: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) of the softmax over similarities to anchors, such as class centres (CLIP-KD, SEED)."""
    teacher_BK = F.log_softmax(teacher_BD @ anchor_KD.T / temperature, dim=1)
    student_BK = F.log_softmax(student_BD @ anchor_KD.T / temperature, dim=1)
    return F.kl_div(student_BK, teacher_BK, log_target=True, reduction="batchmean")
