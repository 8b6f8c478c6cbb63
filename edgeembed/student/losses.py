"""Distillation losses over one batch: the student must land in the teacher's space, not merely copy its distances.

S, T: student's and teacher's unit vectors, (B, D). Every function gives a mean over the batch.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cosine_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """1 - cos(s, t): plain regression onto the teacher, which carries most of the gain (CLIP-KD 2023, AML 2022)."""
    return 1.0 - (student_BD * teacher_BD).sum(dim=1).mean()


def cross_relation_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """MSE between S T^t and T T^t: each student vector is as far from every teacher vector as its teacher is (RAML)."""
    return F.mse_loss(student_BD @ teacher_BD.T, teacher_BD @ teacher_BD.T)


def self_relation_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """MSE between S S^t and T T^t: similarities within the student's batch equal the teacher's (RAML, RKD)."""
    return F.mse_loss(student_BD @ student_BD.T, teacher_BD @ teacher_BD.T)


def standardised_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """MSE with every axis divided by the teacher's deviation along it, in this batch, so that axes on which the teacher
    says little weigh as much as others (standardisation of targets: PHI-S 2024; its single scale for all axes would be
    a weight on the cosine loss here). Variances below a hundredth of their mean count as that. A batch of one image has
    none: all axes then count alike, with 1/D each as of unit vectors in all directions.
    """
    variance_D = teacher_BD.var(dim=0, correction=0)
    if len(teacher_BD) == 1:
        variance_D = variance_D + 1.0 / teacher_BD.shape[1]
    floor = 0.01 * variance_D.mean()
    return ((student_BD - teacher_BD) ** 2 / variance_D.clamp_min(floor + 1e-12)).mean()


def anchor_kl_loss(student_BD: Tensor, teacher_BD: Tensor, anchor_KD: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) of the softmax similarity to anchors: centres or embeddings (CLIP-KD, SEED)."""
    teacher_BK = F.log_softmax(teacher_BD @ anchor_KD.T / temperature, dim=1)
    student_BK = F.log_softmax(student_BD @ anchor_KD.T / temperature, dim=1)
    return F.kl_div(student_BK, teacher_BK, log_target=True, reduction="batchmean")
