"""The contract of students: they build, return unit vectors and finite gradients, fuse without changing, export."""

from __future__ import annotations

import logging

import numpy as np
import onnxruntime
import pytest
import torch

from edgeembed.errors import UserError
from edgeembed.export.onnx import to_onnx
from edgeembed.network.macs import count_macs
from edgeembed.network.model import num_params
from edgeembed.student.aliases import ALIASES, timm_model_name
from edgeembed.student.zoo import build_student, fuse
from tests.export.int8.models import exported_student, int8_weights, to_int8

OTHER_FAMILIES = [
    "convnext_atto", "convnextv2_atto", "cs3darknet_s", "edgenext_xx_small", "efficientnet_lite0", "efficientvit_b0",
    "efficientvit_m0", "fastvit_t12", "ghostnet_100", "hgnetv2_b0", "inception_next_atto", "levit_128s",
    "mobilenetv3_small_100", "mobileone_s0", "mobilevitv2_050", "poolformerv2_s12", "regnetx_002", "repghostnet_050",
    "repvgg_a0", "shvit_s1", "starnet_s1", "swiftformer_xs", "vit_wee_patch16_reg1_gap_256",
]  # fmt: skip


@pytest.mark.parametrize("alias", [*sorted(ALIASES), *OTHER_FAMILIES])
def test_every_student_keeps_the_contract(alias: str) -> None:
    size_px = 224 if alias.startswith(("efficientformerv2", "tiny_vit")) else 64
    torch.manual_seed(0)
    model = build_student(alias, weights="none", size_px=size_px, dim=64)
    image = torch.randint(0, 256, (2, 3, size_px, size_px), dtype=torch.uint8)
    embedding = model(image)
    assert embedding.shape == (2, 64)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(2), atol=1e-5)
    embedding.square().mul(torch.arange(64)).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) > 3
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    model.eval()
    with torch.no_grad():
        assert (fuse(model)(image) - model(image)).abs().max() < 1e-3


def assert_exports(name: str) -> None:
    """Exports a student to ONNX and compares ONNX Runtime with torch, for a batch that was not traced."""
    size_px = 224 if name.startswith(("efficientformerv2", "tiny_vit")) else 64
    torch.manual_seed(0)
    model = build_student(name, weights="none", size_px=size_px, dim=64).eval()
    image = torch.randint(0, 256, (3, size_px, size_px, 3), dtype=torch.uint8)
    session = onnxruntime.InferenceSession(to_onnx(model, {}).SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model(image.permute(0, 3, 1, 2)).numpy()
    assert np.abs(session.run(None, {"image": image.numpy()})[0] - expected).max() < 1e-4


ONE_OF_EACH_KIND = {
    "convolutional, for phones": "mobilenetv4_s",
    "ViT": "vit_t16",
    "cut after its first blocks": "lite0_xs",
    "transformer blocks behind convolutions": "lite0_hybrid",
    "hybrid of convolutions and attention": "mobilevit_xxs",
    "ConvNeXt": "convnext_atto",
}


@pytest.mark.parametrize("kind", ONE_OF_EACH_KIND)
def test_a_student_of_each_kind_exports(kind: str) -> None:
    assert_exports(ONE_OF_EACH_KIND[kind])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*ALIASES, *OTHER_FAMILIES} - {*ONE_OF_EACH_KIND.values()}))
def test_every_other_student_exports(name: str) -> None:
    assert_exports(name)


def assert_quantises(name: str) -> None:
    """Quantises a student to int8 and runs it: unit vectors near those of the fp32 file."""
    size_px = 224 if name.startswith(("efficientformerv2", "tiny_vit")) else 64
    fp32 = exported_student(name, size_px)
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, (12, size_px, size_px, 3), dtype=np.uint8)
    int8 = to_int8(fp32, pixels_NHWC)
    assert len(int8_weights(int8)) > 3
    embedding_ND, reference_ND = (
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"image": pixels_NHWC}
        )[0]
        for model in (int8, fp32)
    )
    assert (embedding_ND * reference_ND).sum(axis=1).min() > 0.5
    assert np.allclose(np.linalg.norm(embedding_ND, axis=1), 1, atol=1e-5)


CHANGED = ("lite0_xs", "lite0_hybrid")


@pytest.mark.parametrize("name", CHANGED)
def test_a_student_that_is_cut_or_has_transformer_blocks_quantises(name: str) -> None:
    assert_quantises(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*ALIASES} - {*CHANGED}))
def test_every_other_alias_quantises(name: str) -> None:
    assert_quantises(name)


def test_any_timm_name_is_a_student() -> None:
    assert timm_model_name("convnext_atto") == "convnext_atto"
    assert build_student("test_vit", weights="none", size_px=32, dim=16).dim == 16


def test_an_alias_may_be_the_first_blocks_of_a_network() -> None:
    sizes = {
        name: num_params(build_student(name, weights="none", size_px=64, dim=64))
        for name in ("lite0_xs", "lite0_hybrid", "lite0")
    }
    assert sizes == {"lite0_xs": 708_000, "lite0_hybrid": 1_625_696, "lite0": 3_452_992}
    given = build_student("lite0_xs", weights="none", size_px=64, dim=64, blocks=4)
    assert given.describe().architecture.blocks == 4
    given = build_student("lite0_hybrid", weights="none", size_px=64, dim=64, attention_blocks=1)
    assert (given.describe().architecture.blocks, given.describe().architecture.attention_blocks) == (5, 1)


def test_an_unknown_student_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown student 'mobilenet4_s': did you mean 'mobilenetv4_s'"):
        timm_model_name("mobilenet4_s")


def test_a_size_that_the_network_cannot_take_is_refused() -> None:
    with pytest.raises(UserError, match="takes 224 only"):
        build_student("efficientformerv2_s0", weights="none", size_px=128, dim=64)


def test_without_a_network_pretrained_falls_back_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: object
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "https://no-such-host.invalid")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        model = build_student("test_resnet", weights="auto", size_px=32, dim=8)
    assert model.dim == 8
    assert "starting from random weights, which recipe scratch is made for" in caplog.text
    assert constants.HF_HUB_OFFLINE is False


def test_multiply_accumulates_of_a_known_network() -> None:
    # 3 M parameters, .19 G multiply-accumulates at 224 px for MobileNetV4-Conv-S (Qin et al. 2024, table 5).
    model = build_student("mobilenetv4_s", weights="none", size_px=224, dim=64)
    assert count_macs(model) == pytest.approx(0.19e9, rel=0.1)


def test_views_may_grow_where_the_network_can_take_them() -> None:
    build_student("vit_t16", weights="none", size_px=64, dim=8).require_view_sizes(32, 48, 64)
    fixed = build_student("pit_ti_224", weights="none", size_px=64, dim=8)
    fixed.require_view_sizes(64)
    with pytest.raises(UserError, match="does not take views of 40 px where it is built for 64"):
        fixed.require_view_sizes(40, 64)
