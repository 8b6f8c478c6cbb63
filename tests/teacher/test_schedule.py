"""Rates: warm-up, cosine, and which parameters get which."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeembed.config import OptimSection
from edgeembed.teacher.schedule import build_optimizer, rate_factor, set_rates


def factor(step: int, **keys: float) -> float:
    section = OptimSection(warmup_epochs=2, warmup_start_factor=0.1, **keys)
    return rate_factor(step, steps_per_epoch=10, total_steps=100, section=section)


def test_warm_up_is_linear_and_the_cosine_ends_with_the_run() -> None:
    assert [factor(step) for step in (0, 10, 20)] == pytest.approx([0.1, 0.55, 1.0])
    assert factor(60) == pytest.approx(0.5)
    assert factor(99) < 0.001
    assert factor(99, final_lr_factor=0.2) == pytest.approx(0.2, abs=0.001)


def test_a_longer_cosine_is_cut_off_by_the_end_of_the_run() -> None:
    assert factor(99, cosine_epochs=200) > 0.99


def test_a_run_shorter_than_its_warm_up_still_has_rates() -> None:
    section = OptimSection(warmup_epochs=5)
    values = [rate_factor(step, steps_per_epoch=10, total_steps=2, section=section) for step in (0, 1)]
    assert values == pytest.approx([0.01, 1.0])


def test_rates_are_stratified_and_vectors_are_not_decayed() -> None:
    backbone, neck, head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), nn.Linear(2, 9, bias=False)
    section = OptimSection(lr=1e-4, backbone_lr_factor=0.001, head_lr_factor=5.0, weight_decay=0.1)
    optimizer = build_optimizer(backbone, neck, head, section)
    of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    assert of[id(backbone.weight)]["lr"] == pytest.approx(1e-7)
    assert of[id(neck.weight)]["lr"] == pytest.approx(1e-4)
    assert of[id(head.weight)]["lr"] == pytest.approx(5e-4)
    assert (of[id(neck.weight)]["weight_decay"], of[id(neck.bias)]["weight_decay"]) == (0.1, 0.0)
    set_rates(optimizer, 0.5)
    assert of[id(head.weight)]["lr"] == pytest.approx(2.5e-4)
    assert isinstance(optimizer, torch.optim.AdamW)
