"""ArcFace against an independent oracle, by hand, and at the ends where naive code gives NaN."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pytorch_metric_learning.losses import ArcFaceLoss

from edgeembed.teacher.margin import ClassCentres, arcface_loss, margin_at


def test_the_example_worked_by_hand() -> None:
    embedding = torch.tensor([[math.cos(math.pi / 6), 0.5]])
    centres = ClassCentres(2, 2)
    with torch.no_grad():
        centres.weight.copy_(torch.eye(2))
    loss = arcface_loss(centres(embedding), torch.tensor([0]), margin=0.5, scale=30.0)
    assert loss.item() == pytest.approx(0.43435, abs=1e-5)


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.8])
def test_loss_and_gradients_equal_the_oracle(margin: float) -> None:
    torch.manual_seed(0)
    embedding = torch.nn.functional.normalize(torch.randn(32, 16, dtype=torch.float64), dim=1)
    label = torch.randint(0, 10, (32,))
    oracle = ArcFaceLoss(num_classes=10, embedding_size=16, margin=math.degrees(margin), scale=30).double()
    centres = ClassCentres(10, 16)
    with torch.no_grad():
        centres.weight.copy_(oracle.W.T)
    ours_in = embedding.float().requires_grad_()
    theirs_in = embedding.clone().requires_grad_()
    ours = arcface_loss(centres(ours_in), label, margin=margin, scale=30.0)
    theirs = oracle(theirs_in, label)
    ours.backward()
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    # The oracle normalises its input, so only the part of the gradient along the sphere can be compared.
    tangent = ours_in.grad - (ours_in.grad * ours_in).sum(1, keepdim=True) * ours_in
    assert torch.allclose(tangent.double(), theirs_in.grad, atol=1e-4)
    assert torch.allclose(centres.weight.grad.double(), oracle.W.grad.T, atol=1e-4)


@pytest.mark.parametrize("cosine", [-1.0, 1.0, 0.0, -0.99999])
def test_gradients_are_finite_everywhere(cosine: float) -> None:
    value = torch.tensor([[cosine, 0.1]], requires_grad=True)
    loss = arcface_loss(value, torch.tensor([0]), margin=0.5, scale=30.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(value.grad).all()


def test_beyond_pi_the_fallback_keeps_the_target_falling() -> None:
    angle = torch.linspace(0.0, math.pi, 400)
    cosine = torch.stack([angle.cos(), torch.zeros(400)], dim=1)
    losses = torch.stack([arcface_loss(row[None], torch.tensor([0]), margin=0.8, scale=1.0) for row in cosine])
    assert (losses.diff() > -1e-6).all()


def test_the_cosine_is_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert ClassCentres(4, 8)(torch.randn(2, 8).bfloat16()).dtype == torch.float32


def test_the_margin_grows_to_its_ceiling() -> None:
    grown = [margin_at(epoch, margin=0.3, growth_per_epoch=0.1, margin_max=0.8) for epoch in (0, 1, 4, 9)]
    assert grown == pytest.approx([0.3, 0.4, 0.7, 0.8])
    assert margin_at(5, margin=0.5, growth_per_epoch=0.0, margin_max=None) == 0.5
    assert margin_at(5, margin=0.5, growth_per_epoch=0.1, margin_max=0.3) == 0.5
