"""Evaluation mode for a while: what training has frozen stays frozen afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from edgeembed.network.eval_mode import eval_mode
from edgeembed.network.model import build_model
from edgeembed.teacher.margin import ClassCentres
from edgeembed.teacher.networks import freeze
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.training.embed import embed_files


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def test_every_module_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    model[1][0].eval()
    before = modes(model)
    assert set(before.values()) == {True, False}
    with eval_mode(model):
        assert not any(modes(model).values())
    assert modes(model) == before
    with pytest.raises(ValueError, match="inside"), eval_mode(model):
        raise ValueError("inside")
    assert modes(model) == before


@pytest.mark.parametrize(
    "backbone", [{"frozen_batch_norm": True}, {"frozen_blocks": 2}, {"frozen": True}, {"frozen": False}]
)
def test_what_a_stage_freezes_is_frozen_after_an_evaluation(tmp_path: Path, backbone: dict[str, object]) -> None:
    Image.effect_noise((40, 40), 80).convert("RGB").save(tmp_path / "0.png")
    model = build_model("test_resnet", weights="none", size_px=32, dim=8, dropout=0.2)
    freeze(TeacherRecipe.model_validate({"backbone": backbone}), model, ClassCentres(3, 8))
    before = modes(model)
    statistics = {name: value.clone() for name, value in model.state_dict().items()}
    embed_files(model, [str(tmp_path / "0.png")], batch_size=1, workers=0, device="cpu", precision="fp32")
    model.require_view_sizes(48)
    assert modes(model) == before
    assert all(torch.equal(value, statistics[name]) for name, value in model.state_dict().items())
