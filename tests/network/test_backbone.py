"""Backbones: both libraries, weights from files in every layout that they come in, errors by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch

from edgeembed.errors import UserError
from edgeembed.network.backbone import build_backbone, fixed_input_size
from edgeembed.network.model import EnsembleModel, build_model
from edgeembed.network.model_names import library_of
from edgeembed.network.space_id import space_id

CLIP = "ViT-S-32-alt"


@pytest.fixture(scope="module")
def clip() -> torch.nn.Module:
    torch.manual_seed(1)
    return open_clip.create_model(CLIP, pretrained=None)


def test_names_find_their_library() -> None:
    assert library_of("ViT-H-14") == "open_clip"
    assert library_of("resnet18d") == "timm"
    with pytest.raises(UserError, match="unknown backbone 'ViT-H-114': did you mean 'ViT-H-14'"):
        library_of("ViT-H-114")


@pytest.mark.parametrize("layout", ["whole.safetensors", "visual.safetensors", "whole.pt", "wrapped.pt", "module.pt"])
def test_weights_come_from_a_local_file(clip: torch.nn.Module, tmp_path: Path, layout: str) -> None:
    path = tmp_path / layout
    state = clip.state_dict() if layout != "visual.safetensors" else clip.visual.state_dict()
    if layout == "module.pt":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if layout == "wrapped.pt" else state, path)
    backbone = build_backbone(CLIP, weights=str(path), size_px=224)
    image = torch.randn(1, 3, 224, 224)
    clip.visual.proj, projection = None, clip.visual.proj
    with torch.no_grad():
        expected = clip.visual.eval()(image)
        found = backbone.module.eval()(image)
    clip.visual.proj = projection
    assert torch.equal(found, expected)
    assert found.shape == (1, backbone.dim)
    assert backbone.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))


class Trap:
    """What a hostile file would hold."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_a_pickle_is_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match="not a torch file of plain tensors"):
        build_backbone("test_resnet", weights=str(tmp_path / "trap.pt"), size_px=32)
    assert "executed" not in capsys.readouterr().out


def test_files_of_other_shapes_are_refused(tmp_path: Path) -> None:
    other = build_backbone("test_vit", weights="none", size_px=32).module
    torch.save(other.state_dict(), tmp_path / "other.pt")
    with pytest.raises(
        UserError, match=r"holds 0 of the backbone's 75 tensors: it has 'cls_token'.*the backbone 'conv1.0.weight'"
    ):
        build_backbone("test_resnet", weights=str(tmp_path / "other.pt"), size_px=32)
    with pytest.raises(UserError, match="has shape"):
        build_backbone("test_vit", weights=str(tmp_path / "other.pt"), size_px=64)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UserError, match="not a torch file"):
        build_backbone("test_vit", weights=str(tmp_path / "text.pt"), size_px=64)


@pytest.mark.parametrize(
    ("name", "weights", "told"),
    [
        ("ViT-H-14", "laion2b_s32b_b97k", "did you mean 'laion2b_s32b_b79k'"),
        ("ViT-H-14", "pretrained", "name one of"),
        ("resnet18d", "laion", "give 'pretrained', 'none' or a file"),
        ("resnet18d", "missing.pt", "no such file"),
    ],
)
def test_wrong_weights_are_named(name: str, weights: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        build_backbone(name, weights=weights, size_px=224)
    assert told in str(caught.value)


def test_gradient_checkpointing_is_refused_where_it_does_not_exist() -> None:
    with pytest.raises(UserError, match="does not offer it"):
        build_backbone("dla34", weights="none", size_px=32, grad_checkpointing=True)


def test_the_space_id_names_weights_and_preprocessing_but_not_memory_layout() -> None:
    torch.manual_seed(0)
    model = build_model("test_resnet", weights="none", size_px=32, dim=8, dropout=0.2)
    name = space_id(model)
    assert space_id(model.to(memory_format=torch.channels_last)) == name
    with torch.no_grad():
        model.neck.projection.weight[0, 0] += 1e-3
    assert space_id(model) != name


def test_the_neck_gives_unit_vectors_in_float32() -> None:
    model = build_model("test_vit", weights="none", size_px=32, dim=8, dropout=0.0).eval()
    with torch.autocast("cpu", torch.bfloat16):
        embedding = model(torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8))
    assert embedding.dtype == torch.float32
    assert torch.allclose(embedding.norm(dim=1), torch.ones(3), atol=1e-6)


def test_the_last_stride_can_be_left_out() -> None:
    image_BCHW = torch.randn(1, 3, 64, 64)
    maps = []
    for output_stride in (None, 16):
        module: Any = build_backbone("resnet10t", weights="none", size_px=64, output_stride=output_stride).module.eval()
        maps.append(tuple(module.forward_features(image_BCHW).shape[2:]))
    assert maps == [(2, 2), (4, 4)]
    model = build_model("resnet10t", weights="none", size_px=64, dim=8, dropout=0.0, output_stride=16)
    again = type(model).from_description(model.describe())
    again.load_state_dict(model.state_dict())
    assert again.eval()(image_BCHW).equal(model.eval()(image_BCHW))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", CLIP])
def test_towers_without_strides_refuse_another_one(name: str) -> None:
    with pytest.raises(UserError, match=r"backbone.output_stride = 16: .* does not offer it"):
        build_backbone(name, weights="none", size_px=64, output_stride=16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["coca_ViT-B-32", "ViT-B-16-SigLIP", "RN50", "convnext_base_w", "EVA02-B-16", "PE-Core-T-16-384"]
)
def test_open_clip_towers_of_every_family_give_one_vector_an_image(name: str) -> None:
    size_px = fixed_input_size(name, "open_clip") or 224
    backbone = build_backbone(name, weights="none", size_px=size_px)
    feature = backbone.module.train()(torch.zeros(2, 3, size_px, size_px))
    assert feature.shape == (2, backbone.dim)
    feature.sum().backward()


def test_the_space_id_follows_what_changes_an_embedding_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = build_model("test_resnet", weights="none", size_px=32, dim=8, dropout=0.2)
    name = space_id(model)
    model.neck.dropout.p = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.num_batches_tracked is not None
            module.num_batches_tracked += 5
    assert space_id(model) == name
    names = {name}
    for attribute, value in (("flip", True), ("scales", (0.75, 1.0)), ("keep_aspect", True), ("size_px", 48)):
        before = getattr(model, attribute)
        setattr(model, attribute, value)
        names.add(space_id(model))
        setattr(model, attribute, before)
    assert len(names) == 5
    assert space_id(model) == name


def test_the_space_id_of_joined_teachers_follows_their_members() -> None:
    torch.manual_seed(0)
    members = [build_model("test_resnet", weights="none", size_px=32, dim=8, dropout=0.1) for _ in range(2)]
    name = space_id(EnsembleModel(members, [1.0, 2.0]))
    members[0].neck.dropout.p = 0.5
    assert space_id(EnsembleModel(members, [1.0, 2.0])) == name
    assert space_id(EnsembleModel(members, [1.0, 1.0])) != name
    assert space_id(EnsembleModel(members, [3, 6])) == name  # the proportions alone decide
    members[0].pca_rotated = True  # a mark of what the weights hold
    assert space_id(EnsembleModel(members, [1.0, 2.0])) == name
    members[1].flip = True
    assert space_id(EnsembleModel(members, [1.0, 2.0])) != name
