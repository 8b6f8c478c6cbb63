"""Transformer blocks behind a convolutional network: what they start from, how they are built again, what has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from edgeembed.errors import UserError
from edgeembed.network.attention import WIDTH
from edgeembed.network.backbone import build_backbone, require_blocks
from edgeembed.network.blocks import blocks_by_depth
from edgeembed.network.cut import keep_first_blocks
from edgeembed.network.model import build_model

OPTIONS: dict[str, Any] = {"weights": "none", "size_px": 64, "dim": 8, "dropout": 0.0}


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_050", "mobilenetv4_conv_small_035"])
@pytest.mark.parametrize("blocks", [2, None])
def test_the_convolutions_keep_their_weights(name: str, blocks: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=0).eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    hybrid = build_backbone(
        name, weights=str(tmp_path / "w.safetensors"), size_px=64, blocks=blocks, attention_blocks=1
    ).module.eval()
    network: Any = hybrid
    if blocks is not None:
        keep_first_blocks(whole, blocks, name=name, key="blocks")
    image_BCHW = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        feature_BCHW = whole.blocks(whole.bn1(whole.conv_stem(image_BCHW)))
        expected_BC = network.blocks[-1](feature_BCHW).mean(dim=(2, 3))
        torch.testing.assert_close(hybrid(image_BCHW), expected_BC)
    assert expected_BC.shape == (2, WIDTH)


def test_positions_attend_to_each_other() -> None:
    network: Any = build_backbone(
        "mobilenetv3_small_050", weights="none", size_px=64, blocks=2, attention_blocks=1
    ).module.eval()
    feature_BCHW = torch.randn(1, 16, 4, 4, requires_grad=True)
    network.blocks[-1](feature_BCHW)[0, 0, 0, 0].backward()
    assert feature_BCHW.grad is not None
    assert feature_BCHW.grad[0, :, 3, 3].abs().max() > 0


def test_it_takes_any_size_and_trains_with_checkpointing_and_layer_decay() -> None:
    model = build_model("mobilenetv3_small_050", blocks=3, attention_blocks=2, grad_checkpointing=True, **OPTIONS)
    model(torch.zeros(2, 3, 96, 80)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    added = {id(parameter) for parameter in model.backbone.blocks[-1].parameters()}  # type: ignore[union-attr, index]
    holds_added = [any(id(each) in added for each in block) for block in blocks_by_depth(model.backbone)]
    # A learning rate that falls towards the input: the transformer blocks come last, one by one.
    assert holds_added == sorted(holds_added)
    assert sum(holds_added) >= 2


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "ViT-S-32-alt"])
def test_networks_of_other_families_are_refused(name: str) -> None:
    message = f"student.attention_blocks = 2: transformer blocks cannot be added to {name}, only"
    with pytest.raises(UserError, match=message):
        build_backbone(name, weights="none", size_px=160, attention_blocks=2, weights_key="student.weights")
    with pytest.raises(UserError, match=message):  # before weights are downloaded
        require_blocks(name, None, 2, weights_key="student.weights")
