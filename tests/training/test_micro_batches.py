"""Batches that batch norm can take, whatever their size."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from edgeembed.network.model import build_model
from edgeembed.student.zoo import build_student
from edgeembed.training.micro_batches import micro_batches, warn_if_batches_of_one


def small(*, batch_norm: bool) -> nn.Module:
    middle: nn.Module = nn.BatchNorm1d(4) if batch_norm else nn.LayerNorm(4)
    return nn.Sequential(nn.Linear(3, 4), middle, nn.Linear(4, 2)).train()


@pytest.mark.parametrize(
    ("num_images", "steps", "sizes"),
    [
        (8, 2, [4, 4]),
        (5, 4, [3, 2]),
        (3, 3, [3]),
        (2, 2, [2]),
        (9, 8, [3, 2, 2, 2]),
        (1, 4, [1]),
        (0, 4, []),
        (7, 1, [7]),
    ],
)
def test_no_part_is_of_one_image_unless_the_batch_is(num_images: int, steps: int, sizes: list[int]) -> None:
    parts = list(micro_batches(small(batch_norm=True), num_images, steps))
    assert [part.size for part in parts] == sizes
    assert [place for part in parts for place in part] == list(range(num_images))


def test_a_network_without_batch_norm_gets_the_parts_that_were_always() -> None:
    assert [part.size for part in micro_batches(small(batch_norm=False), 5, 4)] == [2, 1, 1, 1]


def test_a_lone_image_leaves_the_statistics_as_they_are_and_everything_in_training_mode() -> None:
    model = small(batch_norm=True)
    norm = model[1]
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    for _ in micro_batches(model, 1, 1):
        model(torch.randn(1, 3)).sum().backward()
    assert all(torch.equal(value, norm.state_dict()[name]) for name, value in before.items())
    assert norm.weight.grad is not None
    assert all(module.training for module in model.modules())
    for _ in micro_batches(model, 1, 1):
        assert not norm.training
        break
    assert all(module.training for module in model.modules())


def test_frozen_batch_norm_stays_frozen() -> None:
    model = small(batch_norm=True)
    model[1].eval()
    for _ in micro_batches(model, 1, 1):
        pass
    assert not model[1].training
    assert [part.size for part in micro_batches(model, 2, 2)] == [1, 1]


@pytest.mark.parametrize("size_px", [32, 64])
@pytest.mark.parametrize("which", ["student", "neck", "checkpointed"])
def test_networks_learn_from_a_lone_image_at_any_size(which: str, size_px: int) -> None:
    """32 px leave one pixel before the last batch norms of a test_resnet: one value of a channel."""
    if which == "student":
        model = build_student("test_resnet", weights="none", size_px=size_px, dim=8)
    else:
        checkpointed = which == "checkpointed"
        model = build_model(
            "test_resnet",
            weights="none",
            size_px=size_px,
            dim=8,
            dropout=0.0,
            batch_norm=True,
            grad_checkpointing=checkpointed,
        )
    model.train()
    for _ in micro_batches(model, 1, 3):
        model(torch.zeros(1, 3, size_px, size_px)).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_batches_of_one_are_said_before_training(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_if_batches_of_one(small(batch_norm=False), 1)
        warn_if_batches_of_one(small(batch_norm=True), 2)
        assert not caplog.records
        warn_if_batches_of_one(small(batch_norm=True), 1)
    assert "set train.batch_size to 2 or more" in caplog.text
