"""Published weights without a network: one line within seconds, naming what was looked for and where."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from edgeembed.errors import UserError
from edgeembed.network.backbone import build_backbone
from edgeembed.network.hub import hub_within_seconds, is_reachable
from edgeembed.student.zoo import build_student

WEIGHTS = [
    ("test_resnet", "pretrained", "timm/test_resnet.r160_in1k"),
    ("ViT-B-32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    ("RN50", "yfcc15m", "timm/resnet50_clip.yfcc15m"),
]


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never says a word, as some firewalls do."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


def refusal(name: str, weights: str) -> str:
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        build_backbone(name, weights=weights, size_px=224)
    assert time.monotonic() - started < 30  # seconds on an idle machine
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["mobilenetv4_conv_small_035", "resnetv2_50d"])
def test_a_model_without_published_weights_is_told_so(name: str) -> None:
    assert refusal(name, "pretrained") == (
        f"backbone.weights = 'pretrained': no weights of {name} are published: give a file "
        "(backbone.weights=./model.safetensors), or none for random weights"
    )


@pytest.mark.parametrize(("name", "weights", "source"), WEIGHTS)
def test_an_unknown_host_is_told_in_one_line(
    name: str, weights: str, source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://no-such-host.invalid")
    told = refusal(name, weights)
    assert told.startswith(f"backbone.weights = '{weights}': the weights of {name} ({source}) could not be downloaded")
    assert f"https://no-such-host.invalid does not reply, and there is no copy in {tmp_path}" in told
    assert told.endswith(
        "give a file that was downloaded elsewhere (backbone.weights=./model.safetensors), or none for random weights"
    )
    assert constants.HF_HUB_OFFLINE is False


def test_a_silent_server_is_given_up_within_seconds(monkeypatch: pytest.MonkeyPatch, silent_server: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", silent_server)
    assert f"{silent_server} does not reply" in refusal("test_resnet", "pretrained")


def test_the_offline_switch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal("test_resnet", "pretrained")
    with pytest.raises(UserError, match=r"student.weights = 'pretrained'.*\(student.weights=./model.safetensors\)"):
        build_student("test_resnet", weights="pretrained", size_px=32, dim=8)


def test_what_replies_is_reachable_and_the_settings_come_back() -> None:
    assert not is_reachable("https://no-such-host.invalid")
    assert not is_reachable("file:///etc/hosts")
    before = socket.getdefaulttimeout()
    with hub_within_seconds():
        assert socket.getdefaulttimeout() is not None
    assert socket.getdefaulttimeout() == before
