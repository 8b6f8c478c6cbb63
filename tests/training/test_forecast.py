"""Hopeless combinations are named before the first step, and measuring them changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgeembed.student.zoo import build_student
from edgeembed.training import forecast
from edgeembed.training.forecast import seconds_per_image, warn_if_too_slow
from tests.conftest import TINY, Outcome, as_options


def test_a_combination_that_would_take_days_is_named_with_a_way_out(
    edgeembed: Callable[..., Outcome],
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(forecast, "LARGE_MODEL_PARAMS", 1000)
    monkeypatch.setattr(forecast, "seconds_per_image", lambda *_args, **_keys: 86_400.0)
    command = [
        "teacher-train",
        "--data",
        tiny_data,
        "--recipe",
        "quickstart",
        *as_options([*TINY, "train.max_steps=2"]),
    ]
    with caplog.at_level(logging.WARNING):
        assert edgeembed(*command, "--out", tmp_path / "run").code == 0
    assert "test_resnet without a GPU: about 16.0 days for 16 images, from 2 measured steps; instead, " in caplog.text
    assert "--recipe grocery_cpu" in caplog.text


@pytest.mark.parametrize(("days", "device", "warned"), [(0.3, "cpu", False), (3.0, "cpu", True), (3.0, "cuda", False)])
def test_only_days_on_a_cpu_are_hopeless(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, days: float, device: str, warned: bool
) -> None:
    monkeypatch.setattr(forecast, "LARGE_MODEL_PARAMS", 10)
    monkeypatch.setattr(forecast, "seconds_per_image", lambda *_args, **_keys: days * 864.0)
    keys = {"name": "net", "size_px": 32, "device": device, "precision": "fp32", "instead": "do something else"}
    with caplog.at_level(logging.WARNING):
        warn_if_too_slow(torch.nn.Linear(4, 4), num_images=100, **keys)
    assert ("net without a GPU: about 3.0 days" in caplog.text) == warned


def test_measuring_leaves_weights_statistics_and_random_numbers_as_they_were() -> None:
    model = build_student("test_resnet", weights="none", size_px=32, dim=8, dropout=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    assert seconds_per_image(model, size_px=32, precision="fp32") > 0.0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), drawn)
