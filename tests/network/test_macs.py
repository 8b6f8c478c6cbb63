"""Multiply-accumulates of a network: counted by running it, or for a large one by its shapes."""

from __future__ import annotations

import pytest

from edgeembed.network import macs
from edgeembed.network.macs import count_macs
from edgeembed.network.model import EnsembleModel, build_model


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_shapes_alone_give_the_same_count(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model = build_model(name, weights="none", size_px=64, dim=8, dropout=0.0)
    run = count_macs(model)
    assert run > 1_000_000
    assert model.training
    monkeypatch.setattr(macs, "LARGE_MODEL_PARAMS", 0)
    assert count_macs(model) == run


def test_members_of_an_ensemble_and_averaged_views_add_up() -> None:
    first, second = (
        build_model(name, weights="none", size_px=64, dim=8, dropout=0.0) for name in ("test_resnet", "test_vit")
    )
    both = count_macs(first) + count_macs(second)
    assert count_macs(EnsembleModel([first, second], [1.0, 1.0])) == both
    once = count_macs(first)
    first.flip = True
    assert count_macs(first) == 2 * once
