"""Transformers at other sizes: nothing changes at the original one, and what is averaged in evaluation."""

from __future__ import annotations

import pytest
import torch

from edgeembed.errors import UserError
from edgeembed.network.backbone import build_backbone
from edgeembed.network.model import build_model
from edgeembed.network.position_embedding import set_input_size

TOWERS = ["test_vit", "ViT-B-32", "vit_tiny_patch16_224"]


@pytest.mark.parametrize("name", TOWERS)
def test_the_original_size_is_reproduced_exactly(name: str) -> None:
    size_px = 64 if name == "test_vit" else 224
    tower = build_backbone(name, weights="none", size_px=size_px).module.eval()
    image = torch.randn(2, 3, size_px, size_px)
    with torch.no_grad():
        before = tower(image)
        set_input_size(tower, size_px)
        assert torch.equal(tower(image), before)


@pytest.mark.parametrize(("name", "stride"), [("test_vit", 12), ("ViT-B-32", 24), ("vit_tiny_patch16_224", 12)])
def test_a_larger_size_with_overlapping_patches_runs(name: str, stride: int) -> None:
    model = build_model(name, weights="none", size_px=64, dim=8, dropout=0.0).eval()
    for size_px, patch_stride in ((96, None), (96, stride)):
        model.set_input_size(size_px, patch_stride)
        with torch.no_grad():
            assert model(torch.zeros(2, 3, size_px, size_px)).shape == (2, 8)
    assert model.describe().architecture.patch_stride == stride


def test_weights_of_the_native_size_serve_another_one(tmp_path: object) -> None:
    model = build_backbone("vit_tiny_patch16_224", weights="none", size_px=224).module
    path = f"{tmp_path}/vit.safetensors"
    from safetensors.torch import save_file

    save_file(model.state_dict(), path)
    larger = build_backbone("vit_tiny_patch16_224", weights=path, size_px=288)
    assert larger.module.state_dict()["pos_embed"].shape == (1, 18 * 18 + 1, 192)
    assert torch.equal(larger.module.state_dict()["norm.weight"], model.state_dict()["norm.weight"])


@pytest.mark.parametrize(
    ("name", "stride", "told"),
    [("test_resnet", 8, "has no patches to overlap"), ("test_vit", 99, "expected at most the patch size, 16")],
)
def test_a_stride_that_cannot_be_is_refused(name: str, stride: int, told: str) -> None:
    with pytest.raises(UserError, match=told):
        build_backbone(name, weights="none", size_px=64, patch_stride=stride)


def test_flip_and_scales_are_averaged_in_evaluation_only() -> None:
    model = build_model("test_resnet", weights="none", size_px=32, dim=8, dropout=0.0).eval()
    image = torch.rand(3, 3, 32, 32) * 255
    with torch.no_grad():
        plain, mirrored = model(image), model(image.flip(3))
        model.flip = True
        mean = torch.nn.functional.normalize(plain + mirrored, dim=1)
        assert torch.allclose(model(image), mean, atol=1e-6)
        assert torch.allclose(model(image), model(image.flip(3)), atol=1e-6)
        model.scales = (0.75, 1.0, 1.25)
        averaged = model(image)
        assert torch.allclose(averaged.norm(dim=1), torch.ones(3), atol=1e-6)
        assert not torch.allclose(averaged, mean, atol=1e-4)


def test_generalised_mean_pooling() -> None:
    tower = build_backbone("test_resnet", weights="none", size_px=32, pooling="gem").module.eval()
    image = torch.randn(2, 3, 48, 32)
    feature = tower.features.forward_features(image).clamp_min(1e-6)
    assert torch.allclose(tower(image), feature.pow(3).mean(dim=(2, 3)).pow(1 / 3), rtol=1e-5)
    tower.power.data.fill_(1.0)
    assert torch.allclose(tower(image), feature.mean(dim=(2, 3)), rtol=1e-4)
    pooled_in_its_head = build_backbone("ese_vovnet19b_slim", weights="none", size_px=32, pooling="gem").module.eval()
    feature = pooled_in_its_head.features.forward_features(image).clamp_min(1e-6)
    assert torch.allclose(pooled_in_its_head(image), feature.pow(3).mean(dim=(2, 3)).pow(1 / 3), rtol=1e-5)
    with pytest.raises(UserError, match="has no feature map"):
        build_backbone("test_vit", weights="none", size_px=32, pooling="gem")
