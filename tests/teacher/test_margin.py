"""Every head against an independent oracle, by hand, and at the ends where naive code gives NaN."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pytorch_metric_learning import losses

from edgeembed.config import OptimSection
from edgeembed.teacher.margin import ClassCentres, class_margins, dynamic_margins, margin_loss
from edgeembed.training.optimizers import build_optimizers, clip_gradients

CLASSES, DIM, BATCH, SCALE = 10, 16, 32, 30.0


def oracle(kind: str, margin: float, per_class: int = 1) -> Any:
    size: dict[str, Any] = {"num_classes": CLASSES, "embedding_size": DIM}
    if kind == "arcface" and per_class > 1:
        made = losses.SubCenterArcFaceLoss(**size, margin=math.degrees(margin), scale=SCALE, sub_centers=per_class)
    elif kind == "arcface":
        made = losses.ArcFaceLoss(**size, margin=math.degrees(margin), scale=SCALE)
    elif kind == "cosface":
        made = losses.CosFaceLoss(**size, margin=margin, scale=SCALE)
    else:
        made = losses.NormalizedSoftmaxLoss(**size, temperature=1.0 / SCALE)
    return made.double()


def centres_like(made: Any, per_class: int = 1) -> ClassCentres:
    centres = ClassCentres(CLASSES, DIM, per_class=per_class).double()
    with torch.no_grad():
        centres.weight.copy_(made.W.T)
    return centres


def unit_rows(count: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def along_the_sphere(gradient_BD: Tensor, at_BD: Tensor) -> Tensor:
    """The oracles normalise their input, so only this part of a gradient can be compared."""
    return gradient_BD - (gradient_BD * at_BD).sum(1, keepdim=True) * at_BD


def gradients(kind: str, margin: float, per_class: int, embedding_BD: Tensor, label_B: Tensor) -> tuple[Any, ...]:
    torch.manual_seed(1)
    made = oracle(kind, margin, per_class)
    centres = centres_like(made, per_class)
    ours_in, theirs_in = embedding_BD.clone().requires_grad_(), embedding_BD.clone().requires_grad_()
    cosine_BK, column_B = centres(ours_in, label_B)
    ours = margin_loss(cosine_BK, column_B, margin=margin, scale=SCALE, kind=kind)  # type: ignore[arg-type]
    theirs = made(theirs_in, label_B)
    ours.backward()
    theirs.backward()
    assert ours_in.grad is not None
    return (
        ours,
        theirs,
        along_the_sphere(ours_in.grad, embedding_BD),
        theirs_in.grad,
        centres.weight.grad,
        made.W.grad.T,
    )


HEADS = [
    ("arcface", 0.0, 1),
    ("arcface", 0.3, 1),
    ("arcface", 0.8, 1),
    ("arcface", 0.5, 3),
    ("cosface", 0.35, 1),
    ("normface", 0.0, 1),
]


@pytest.mark.parametrize(("kind", "margin", "per_class"), HEADS)
def test_loss_and_gradients_equal_the_oracle(kind: str, margin: float, per_class: int) -> None:
    label_B = torch.randint(0, CLASSES, (BATCH,), generator=torch.Generator().manual_seed(2))
    ours, theirs, ours_in, theirs_in, ours_W, theirs_W = gradients(kind, margin, per_class, unit_rows(BATCH), label_B)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert torch.allclose(ours_in, theirs_in, atol=1e-5, rtol=1e-5)
    assert torch.allclose(ours_W, theirs_W, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "margin", "per_class"), HEADS)
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_the_ends_equal_the_oracle(kind: str, margin: float, per_class: int, side: float) -> None:
    """Embeddings that lie on their class centre, or opposite to it."""
    torch.manual_seed(1)
    made = oracle(kind, margin, per_class)
    label_B = torch.arange(4)
    embedding_BD = side * F.normalize(made.W.detach().T.reshape(CLASSES, per_class, DIM)[:4, 0])
    ours, theirs, ours_in, theirs_in, ours_W, theirs_W = gradients(kind, margin, per_class, embedding_BD, label_B)
    assert ours.item() == pytest.approx(theirs.item(), rel=0, abs=1e-5)
    assert torch.allclose(ours_in, theirs_in, atol=1e-5)
    assert torch.allclose(ours_W, theirs_W, atol=1e-5)


def test_margins_of_their_own_equal_one_oracle_an_image() -> None:
    margin_B = torch.tensor([0.1, 0.3, 0.5])
    label_B, embedding_BD = torch.tensor([1, 4, 7]), unit_rows(3)
    torch.manual_seed(1)
    centres = centres_like(oracle("arcface", 0.0))
    loss = margin_loss(*centres(embedding_BD, label_B), margin=margin_B, scale=SCALE)
    alone = []
    for i, margin in enumerate(margin_B.tolist()):
        torch.manual_seed(1)
        alone.append(oracle("arcface", margin)(embedding_BD[i : i + 1], label_B[i : i + 1]))
    assert loss.item() == pytest.approx(torch.stack(alone).mean().item(), abs=1e-5)


def test_the_example_worked_by_hand() -> None:
    centres = ClassCentres(2, 2)
    with torch.no_grad():
        centres.weight.copy_(torch.eye(2))
    embedding_BD, label_B = torch.tensor([[math.cos(math.pi / 6), 0.5]]), torch.tensor([0])
    cosine_BK, column_B = centres(embedding_BD, label_B)
    assert margin_loss(cosine_BK, column_B, margin=0.5, scale=30.0).item() == pytest.approx(0.43435, abs=1e-5)


@pytest.mark.parametrize("kind", ["arcface", "cosface", "normface"])
@pytest.mark.parametrize("cosine", [-1.0, 1.0, 0.0, -0.99999])
def test_gradients_are_finite_everywhere(kind: str, cosine: float) -> None:
    value = torch.tensor([[cosine, 0.1]], requires_grad=True)
    loss = margin_loss(value, torch.tensor([0]), margin=0.5, scale=30.0, kind=kind)  # type: ignore[arg-type]
    loss.backward()
    assert torch.isfinite(loss)
    assert value.grad is not None
    assert torch.isfinite(value.grad).all()


@pytest.mark.parametrize(("per_class", "sample_rate"), [(1, 1.0), (3, 1.0), (1, 0.9)])
@pytest.mark.parametrize("kind", ["arcface", "cosface", "normface"])
def test_gradients_are_finite_under_bf16_autocast(kind: str, per_class: int, sample_rate: float) -> None:
    layer = torch.nn.Linear(DIM, DIM)
    centres = ClassCentres(CLASSES, DIM, per_class=per_class, sample_rate=sample_rate)
    with torch.no_grad():
        centres.weight[: 2 * per_class] = 1.0
        layer.weight.copy_(torch.eye(DIM))
        layer.bias.zero_()
    image_BD = torch.cat([torch.ones(1, DIM), -torch.ones(1, DIM), torch.randn(6, DIM)])
    label_B = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])
    with torch.autocast("cpu", torch.bfloat16):
        cosine_BK, column_B = centres(F.normalize(layer(image_BD)), label_B)
        assert cosine_BK.dtype == torch.float32
        loss = margin_loss(cosine_BK, column_B, margin=0.5, scale=30.0, kind=kind)  # type: ignore[arg-type]
    loss.backward()
    assert torch.isfinite(loss)
    for parameter in (*layer.parameters(), *centres.parameters()):
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad.to_dense()).all()


def test_beyond_pi_the_fallback_keeps_the_target_falling() -> None:
    angle = torch.linspace(0.0, math.pi, 400)
    cosine = torch.stack([angle.cos(), torch.zeros(400)], dim=1)
    rows = [margin_loss(row[None], torch.tensor([0]), margin=0.8, scale=1.0) for row in cosine]
    assert (torch.stack(rows).diff() > -1e-6).all()


def test_the_margin_grows_to_its_ceiling() -> None:
    def grown(epoch: float, *starts: float, growth: float = 0.1, largest: float | None = 0.8) -> list[float]:
        margin_K = torch.tensor(starts, dtype=torch.float64)
        return dynamic_margins(epoch, margin_K, growth_per_epoch=growth, margin_max=largest).tolist()

    assert [grown(epoch, 0.3)[0] for epoch in (0, 1, 4, 9)] == pytest.approx([0.3, 0.4, 0.7, 0.8])
    assert grown(5, 0.5, growth=0.0, largest=None) == [0.5]
    assert grown(5, 0.05, 0.3, 0.5) == pytest.approx([0.55, 0.8, 0.8])  # of each class
    assert grown(0, 0.05, 0.5, largest=0.4) == pytest.approx([0.05, 0.4])
    assert grown(3, 0.05, 0.5, largest=0.0) == [0.0, 0.0]


def test_rare_classes_get_larger_margins() -> None:
    margin_K = class_margins([10_000, 16, 1], smallest=0.05, largest=0.5)
    assert margin_K.tolist() == pytest.approx([0.05, 0.05 + 0.45 * (0.5 - 0.1) / 0.9, 0.5])
    assert class_margins([7, 7], smallest=0.2, largest=0.4).tolist() == pytest.approx([0.3, 0.3])
    assert class_margins([3, 10, 100], smallest=0.05, largest=0.5).tolist() == pytest.approx(
        [0.5, 0.30, 0.05], abs=2e-3
    )


def partial_pair(rate: float, num_classes: int = 50) -> tuple[ClassCentres, ClassCentres]:
    dense, partial = ClassCentres(num_classes, DIM), ClassCentres(num_classes, DIM, sample_rate=rate)
    partial.load_state_dict(dense.state_dict())
    return dense, partial


def test_partial_fc_that_sees_every_class_is_the_dense_softmax() -> None:
    dense, partial = partial_pair(0.999)  # rounds to all 50 classes, by way of the sparse path
    assert partial.sparse
    embedding_BD, label_B = unit_rows(BATCH).float(), torch.arange(BATCH)
    found = []
    for centres in (dense, partial):
        leaf = embedding_BD.clone().requires_grad_()
        cosine_BK, column_B = centres(leaf, label_B)
        loss = margin_loss(cosine_BK, column_B, margin=0.3, scale=SCALE)
        loss.backward()
        assert leaf.grad is not None
        assert centres.weight.grad is not None
        found.append((loss.detach(), leaf.grad, centres.weight.grad.to_dense()))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_partial_fc_sees_the_classes_of_its_batch_and_updates_only_what_it_saw() -> None:
    torch.manual_seed(0)
    _, partial = partial_pair(0.2)
    label_B = torch.tensor([3, 3, 41])
    drawn = partial.draw(label_B)
    assert len(drawn) == 10
    assert {3, 41} <= set(drawn.tolist())
    assert drawn.equal(drawn.sort().values)
    before = partial.weight.detach().clone()
    (optimizer,) = build_optimizers(torch.nn.Identity(), torch.nn.Identity(), partial, OptimSection(), sparse_head=True)
    cosine_BK, column_B = partial(unit_rows(3).float(), label_B)
    assert cosine_BK.shape == (3, 10)
    margin_loss(cosine_BK, column_B, margin=0.3, scale=SCALE).backward()
    norm = clip_gradients(partial.parameters(), max_norm=0.5)
    assert partial.weight.grad is not None
    assert norm > 0.5
    assert partial.weight.grad.to_dense().norm().item() == pytest.approx(0.5, rel=1e-4)
    optimizer.step()
    changed = (partial.weight != before).any(dim=1)
    assert changed.sum() == 10
    assert changed[3]
    assert changed[41]
    assert partial.eval()(unit_rows(3).float(), label_B)[0].shape == (3, 50)
