"""Weight files of every origin: the layouts that load, what is said of the rest, and what is refused."""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from edgeembed.errors import UserError
from edgeembed.network.backbone import build_backbone
from edgeembed.network.model import build_model
from edgeembed.network.weight_files import load_weights
from edgeembed.student.zoo import build_student

State = dict[str, Tensor]


def network(name: str = "test_resnet", seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    module: nn.Module = timm.create_model(name, num_classes=0)
    return module


@pytest.fixture(scope="module")
def state() -> State:
    return dict(network().state_dict())


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def save_as(path: Path, values: Any, *, zipped: bool = True) -> Path:
    torch.save(values, path, _use_new_zipfile_serialization=zipped)
    return path


def assert_loaded(path: Path, state: State) -> None:
    module = network(seed=2)
    load_weights(module, path)
    for name, tensor in module.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, state[name]), name


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "alone": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {0: {"m": 1.0}}}},
    "nested twice": lambda state: {"model": {"state_dict": state}, "args": argparse.Namespace(lr=0.1)},
    "model.backbone": lambda state: {"model": {"backbone": state, "head": {"weight": torch.ones(3)}}},
    "module.": lambda state: prefixed("module.", state),
    "_orig_mod.module.": lambda state: prefixed("_orig_mod.module.", state),
    "_orig_mod. inside": lambda state: {name.replace("layer2.", "layer2._orig_mod."): t for name, t in state.items()},
    "lightning": lambda state: {"state_dict": prefixed("model.backbone.", state), "hyper_parameters": {"lr": 0.1}},
    "encoder of moco": lambda state: {"state_dict": prefixed("module.encoder_q.", state)},
    "with a classifier": lambda state: {**state, "fc.weight": torch.ones(10, 8), "fc.bias": torch.ones(10)},
    "without batch counts": lambda state: {name: t for name, t in state.items() if "num_batches" not in name},
    "ordered with metadata": lambda _: network().state_dict(),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_training_frameworks_load(state: State, tmp_path: Path, layout: str, zipped: bool) -> None:
    assert_loaded(save_as(tmp_path / "w.pth", LAYOUTS[layout](state), zipped=zipped), state)


@pytest.mark.parametrize("name", ["w.safetensors", "pytorch_model.bin", "w.ckpt"])
def test_safetensors_are_known_by_content(state: State, tmp_path: Path, name: str) -> None:
    safetensors.torch.save_file(prefixed("backbone.", state), tmp_path / name)
    assert_loaded(tmp_path / name, state)


def test_half_precision_is_widened(state: State, tmp_path: Path) -> None:
    halved = {name: t.bfloat16() if t.is_floating_point() else t for name, t in state.items()}
    assert_loaded(save_as(tmp_path / "w.pt", halved), {name: t.to(state[name].dtype) for name, t in halved.items()})


@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema", "teacher"])
def test_averaged_weights_come_before_others_and_the_choice_is_told(
    state: State, tmp_path: Path, average: str, caplog: pytest.LogCaptureFixture
) -> None:
    raw = dict(network(seed=5).state_dict())
    with caplog.at_level(logging.INFO):
        assert_loaded(save_as(tmp_path / "w.pth", {"student": raw, average: prefixed("module.", state)}), state)
    assert f"weights are those under '{average}.module.', not under 'student.'" in caplog.text


def test_the_network_of_a_run_is_a_weight_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model("test_resnet", weights="none", size_px=32, dim=8, dropout=0.0)
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    again = build_backbone("test_resnet", weights=str(tmp_path / "model.safetensors"), size_px=32)
    assert torch.equal(again.module.conv1[0].weight, model.backbone.conv1[0].weight)  # type: ignore[union-attr,index]


def test_what_does_not_fit_is_counted_and_named(state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held = {name: t for name, t in state.items() if not name.startswith("layer4.0.bn2")}
    with caplog.at_level(logging.INFO):
        load_weights(network(), save_as(tmp_path / "w.pth", {**held, "fc.weight": torch.ones(2), "x.y": torch.ones(2)}))
    missing = [name for name in state if name not in held and "num_batches" not in name]
    assert missing
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"lacks {len(missing)} of the backbone's" in warning
    assert missing[0] in warning
    assert "2 tensors that are not the backbone's are left out: 'fc.weight', 'x.y'" in caplog.text


@pytest.mark.parametrize(
    ("held", "wanted"), [("test_vit", "test_resnet"), ("resnet18", "resnet34"), (None, "test_vit")]
)
def test_another_architecture_is_refused_with_names_of_both_sides(
    tmp_path: Path, held: str | None, wanted: str
) -> None:
    values = network(held).state_dict() if held else {"epoch": 3}
    module = network(wanted)
    with pytest.raises(UserError, match=r"holds \d+ of the backbone's \d+ tensors") as caught:
        load_weights(module, save_as(tmp_path / "w.pth", values))
    assert next(iter(values)) in str(caught.value) if held else "it has no tensors" in str(caught.value)
    assert next(iter(module.state_dict())) in str(caught.value)


def test_a_size_of_the_architecture_that_has_the_same_names_is_refused(tmp_path: Path) -> None:
    wide = timm.create_model("vit_tiny_patch16_224", num_classes=0, embed_dim=96, img_size=32)
    with pytest.raises(UserError, match=r"tensors have other shapes: cls_token has shape \(1, 1, 96\), the backbone"):
        build_backbone("vit_tiny_patch16_224", weights=str(save_as(tmp_path / "w.pt", wide.state_dict())), size_px=32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_no_numbers_are_refused_by_name(state: State, tmp_path: Path, value: float) -> None:
    broken = {**state, "conv1.0.weight": state["conv1.0.weight"].double()}
    broken["conv1.0.weight"][0, 0] = value  # 1e300 is a number, but none of float32
    with pytest.raises(UserError, match=r"tensor 'model.conv1.0.weight' has 9 of \d+ values that are NaN or infinite"):
        load_weights(network(), save_as(tmp_path / "w.pth", prefixed("model.", broken)))


def test_a_run_whose_weights_are_no_numbers_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    from edgeembed.network.model_files import load_model

    tensors = safetensors.torch.load_file(tiny_teacher / "model.safetensors")
    tensors["neck.projection.bias"][3] = float("nan")
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_bytes((tiny_teacher / "model.json").read_bytes())
    with pytest.raises(UserError, match=r"'neck.projection.bias' has 1 of 64 values that are NaN"):
        load_model(tmp_path)


def test_quantised_weights_are_refused(state: State, tmp_path: Path) -> None:
    values = {**state, "conv1.0.weight": state["conv1.0.weight"].to(torch.int8)}
    path = save_as(tmp_path / "w.pth", values)
    with pytest.raises(UserError, match=r"conv1.0.weight is torch.int8, expected torch.float32"):
        load_weights(network(), path)


def cut(path: Path, share: float = 0.6) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors", "empty", "html", "lfs", "whole module"])
def test_damaged_files_are_refused_by_name(state: State, tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
        cut(path)
    elif kind in ("zip", "old"):
        cut(save_as(path, state, zipped=kind == "zip"))
    elif kind == "whole module":
        torch.save(network(), path)
    else:
        texts = {"empty": "", "html": "<html>404</html>", "lfs": "version https://git-lfs.github.com/spec/v1\noid 1\n"}
        path.write_text(texts[kind])
    expected = {"safetensors": "not a readable safetensors file", "lfs": "git lfs pull"}
    with pytest.raises(UserError, match=expected.get(kind, "not a torch file of plain tensors")) as caught:
        load_weights(network(), path)
    assert str(path) in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        (network(), "timm.models.resnet.ResNet"),
        (Path("runs"), "pathlib.PosixPath"),
        (defaultdict(int), "collections.defaultdict"),
    ],
)
def test_an_object_that_could_run_code_is_refused_by_its_name(
    state: State, tmp_path: Path, beside: object, named: str
) -> None:
    path = save_as(tmp_path / "w.pth", {"state_dict": state, "beside": beside})
    with pytest.raises(
        UserError, match=rf"w\.pth: not a torch file of plain tensors \(it holds a {named}, which could"
    ):
        load_weights(network(), path)


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("kind", ["meta tensor", "sparse tensor"])
def test_tensors_without_dense_values_are_refused_by_name(state: State, tmp_path: Path, kind: str) -> None:
    weight = state["layer1.0.conv1.weight"]
    odd = weight.to("meta") if kind == "meta tensor" else weight.to_sparse()
    path = save_as(tmp_path / "w.pth", {**state, "layer1.0.conv1.weight": odd})
    with pytest.raises(UserError, match=rf"tensor layer1\.0\.conv1\.weight is a {kind}.*save it dense"):
        load_weights(network(), path)


def test_mappings_that_hold_themselves_or_are_very_deep_end(state: State, tmp_path: Path) -> None:
    cyclic: dict[str, object] = dict(state)
    cyclic["itself"] = cyclic
    load_weights(network(), save_as(tmp_path / "cyclic.pth", cyclic))
    deep: dict[str, object] = dict(state)
    for _ in range(300):
        deep = {"model": deep}
    with pytest.raises(UserError, match=r"deep\.pth: holds 0 of the backbone's"):
        load_weights(network(), save_as(tmp_path / "deep.pth", deep))


def test_the_key_of_the_recipe_is_named() -> None:
    with pytest.raises(UserError, match=r"student.weights = './none.pth': no such file"):
        build_student("test_resnet", weights="./none.pth", size_px=32, dim=8)
    with pytest.raises(UserError, match=r"backbone.weights = 'C:\\\\models\\\\w': no such file"):
        build_backbone("test_resnet", weights="C:\\models\\w", size_px=32)
