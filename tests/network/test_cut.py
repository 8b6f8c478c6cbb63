"""Networks that are cut after their first blocks: what is left, with which weights, and what cannot be cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from edgeembed.errors import UserError
from edgeembed.model_json import to_json
from edgeembed.network.backbone import build_backbone, require_blocks
from edgeembed.network.model import build_model, network_from_description
from edgeembed.network.space_id import space_id

CUTS = {
    "EfficientNet": ("tf_efficientnet_lite0", 3),
    "MobileNetV3": ("mobilenetv3_small_050", 3),
    "MobileNetV4": ("mobilenetv4_conv_small_035", 2),
    "timm ViT": ("test_vit", 2),
}


def features(network: Any, name: str, blocks: int, image_BCHW: torch.Tensor) -> torch.Tensor:
    """Pooled features after the first blocks of a whole network, computed part by part."""
    if name == "test_vit":
        network.blocks = network.blocks[:blocks]
        return network(image_BCHW)  # type: ignore[no-any-return]
    return network.blocks[:blocks](network.bn1(network.conv_stem(image_BCHW))).mean(dim=(2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", CUTS)
def test_a_cut_network_keeps_its_first_blocks_with_the_weights_of_the_whole(kind: str, tmp_path: Path) -> None:
    name, blocks = CUTS[kind]
    torch.manual_seed(0)
    size_px = 160 if name == "test_vit" else 64  # the size of its published weights
    whole = timm.create_model(name, num_classes=0).eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    cut = build_backbone(name, weights=str(tmp_path / "w.safetensors"), size_px=size_px, blocks=blocks)
    image_BCHW = torch.randn(2, 3, size_px, size_px)
    with torch.no_grad():
        found, expected = cut.module.eval()(image_BCHW), features(whole, name, blocks, image_BCHW)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert found.shape == (2, cut.dim)


def test_a_cut_open_clip_vit_keeps_its_final_norm() -> None:
    cut = build_backbone("ViT-S-32-alt", weights="none", size_px=64, blocks=2)
    names = {name.split(".")[2] for name in cut.module.state_dict() if name.startswith("transformer.resblocks.")}
    assert names == {"0", "1"}
    assert "ln_post.weight" in cut.module.state_dict()


@pytest.mark.parametrize(
    "changes", [{"blocks": 3}, {"blocks": 3, "attention_blocks": 2}, {"attention_blocks": 1}], ids=str
)
def test_a_changed_network_is_built_again_from_its_description_and_others_do_not_record_it(
    changes: dict[str, int],
) -> None:
    options: dict[str, Any] = {"weights": "none", "size_px": 64, "dim": 8, "dropout": 0.0}
    changed = build_model("mobilenetv3_small_050", **changes, **options)
    recorded = to_json(changed.describe())["architecture"]
    assert {key: recorded.get(key) for key in changes} == changes
    again = network_from_description(changed.describe())
    again.load_state_dict(changed.state_dict())
    assert again.describe() == changed.describe()
    assert space_id(again) == space_id(changed)
    assert not {"blocks", "attention_blocks"} & {
        *to_json(build_model("test_resnet", **options).describe())["architecture"]
    }


@pytest.mark.parametrize("pooling", ["default", "gem"])
def test_a_cut_network_is_trained_with_checkpointing_and_either_pooling(pooling: Any) -> None:
    model = build_model(
        "mobilenetv3_small_050", weights="none", size_px=64, dim=8, dropout=0.0, blocks=3, pooling=pooling,
        grad_checkpointing=True,
    )  # fmt: skip
    model(torch.zeros(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_all_blocks_are_the_whole_network() -> None:
    whole = build_backbone("mobilenetv3_small_050", weights="none", size_px=64)
    assert build_backbone("mobilenetv3_small_050", weights="none", size_px=64, blocks=6).dim == whole.dim == 1024


@pytest.mark.parametrize(
    ("name", "blocks", "told"),
    [
        ("tf_efficientnet_lite0", 8, "student.blocks = 8: tf_efficientnet_lite0 has 7 groups of blocks: give 1 to 7"),
        ("test_vit", 99, "student.blocks = 99: test_vit has 6 blocks: give 1 to 6"),
        ("resnet18", 3, "student.blocks = 3: resnet18 cannot be cut, which only vision transformers and networks of "
         "the EfficientNet and MobileNetV3 families can: set student.blocks to null"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused_in_one_line(name: str, blocks: int, told: str) -> None:
    with pytest.raises(UserError) as caught:
        require_blocks(name, blocks, weights_key="student.weights")
    assert str(caught.value) == told
