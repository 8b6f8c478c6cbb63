"""Distillation losses against naive loops, and their fixed point."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from edgeembed.student.losses import (
    anchor_kl_loss,
    cosine_loss,
    cross_relation_loss,
    self_relation_loss,
    standardised_loss,
)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    student, teacher = (F.normalize(torch.randn(7, 5), dim=1) for _ in range(2))
    return student, teacher


def test_they_equal_naive_loops(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    s, t = pair
    cells = [(i, j) for i in range(7) for j in range(7)]
    cosine = sum(1 - float(s[i] @ t[i]) for i in range(7)) / 7
    cross = sum(float(s[i] @ t[j] - t[i] @ t[j]) ** 2 for i, j in cells) / 49
    within = sum(float(s[i] @ s[j] - t[i] @ t[j]) ** 2 for i, j in cells) / 49
    assert cosine_loss(s, t).item() == pytest.approx(cosine, abs=1e-6)
    assert cross_relation_loss(s, t).item() == pytest.approx(cross, abs=1e-6)
    assert self_relation_loss(s, t).item() == pytest.approx(within, abs=1e-6)
    variance = [float(t[:, d].var(correction=0)) for d in range(5)]
    scaled = sum(float(s[i, d] - t[i, d]) ** 2 / variance[d] for i in range(7) for d in range(5)) / 35
    assert standardised_loss(s, t).item() == pytest.approx(scaled, rel=1e-5)
    anchors = F.normalize(torch.randn(9, 5), dim=1)
    p, q = ((x @ anchors.T / 0.07).softmax(dim=1) for x in (t, s))
    kl = float((p * (p.log() - q.log())).sum() / 7)
    assert anchor_kl_loss(s, t, anchors, temperature=0.07).item() == pytest.approx(kl, abs=1e-5)


def test_they_vanish_where_the_student_is_the_teacher(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, t = pair
    anchors = F.normalize(torch.randn(9, 5), dim=1)
    losses = [cosine_loss(t, t), cross_relation_loss(t, t), self_relation_loss(t, t), standardised_loss(t, t)]
    losses.append(anchor_kl_loss(t, t, anchors, temperature=0.07))
    assert torch.stack(losses).abs().max() < 1e-5


def test_a_rotated_copy_satisfies_only_the_relation_within_the_batch(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, t = pair
    rotation, _ = torch.linalg.qr(torch.randn(5, 5))
    assert self_relation_loss(t @ rotation, t) < 1e-6
    assert cosine_loss(t @ rotation, t) > 0.1
    assert cross_relation_loss(t @ rotation, t) > 0.01


def test_standardised_axes_weigh_the_same_and_an_axis_without_spread_does_not_explode() -> None:
    teacher = torch.tensor([[10.0, 0.1, 1.0], [-10.0, -0.1, 1.0]])
    off = [teacher + shift for shift in (torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.1, 0.0]))]
    assert standardised_loss(off[0], teacher).item() == pytest.approx(0.01 / 3)
    assert standardised_loss(off[1], teacher).item() == pytest.approx(0.01 / (0.01 * 100.01 / 3) / 3, rel=1e-3)
    assert torch.isfinite(standardised_loss(teacher[:1] + 1.0, teacher[:1]))


def test_the_standardised_loss_of_a_lone_image_is_of_the_size_of_others() -> None:
    torch.manual_seed(0)
    student_BD, teacher_BD = (F.normalize(torch.randn(64, 16), dim=1) for _ in range(2))
    lone = torch.stack([standardised_loss(student_BD[[at]], teacher_BD[[at]]) for at in range(64)]).mean()
    torch.testing.assert_close(lone, standardised_loss(student_BD, teacher_BD), rtol=0.2, atol=0.0)
