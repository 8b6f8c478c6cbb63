"""The model card: its code runs as it stands, it names the starting weights, and its notes are found again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeembed.device.bundle import read_bundle
from edgeembed.device.bundle_schema import CARD, BundleManifest
from edgeembed.device.embedder import Embedder, bundled_artifacts, default_bundle
from edgeembed.export.card import model_card, notes_in
from tests.device.conftest import DIM, SIZE_PX, pattern, tiny_network, write_manifest


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    tiny_network(folder / "model.fp32.onnx")
    write_manifest(folder)
    return folder


def with_student(manifest: BundleManifest, **facts: Any) -> BundleManifest:
    return manifest.model_copy(update={"student": {"backbone": "test_resnet", **facts}})


def test_the_code_of_the_card_runs_as_it_stands(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern(1, 90, 60).save(
        bundle / "a.jpg", quality=95, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    )
    pattern(2).save(bundle / "b.jpg")
    blocks = re.findall(r"```python\n(.*?)```", model_card(read_bundle(bundle)), re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(bundle)
    expected = Embedder(bundle).embed(["a.jpg", "b.jpg"])
    for block in blocks:
        namespace: dict[str, Any] = {}
        exec(block, namespace)
        np.testing.assert_allclose(namespace["embedding_ND"], expected, atol=1e-6)
        assert namespace["embedding_ND"].dtype == np.float32
    np.testing.assert_allclose(namespace["similarity_NN"], expected @ expected.T, atol=1e-5)


def test_the_card_names_input_and_output(bundle: Path) -> None:
    card = model_card(read_bundle(bundle))
    assert f"| input | `image` | uint8 | (N, {SIZE_PX}, {SIZE_PX}, 3) | RGB, 0..255" in card
    assert f"| output | `embedding` | float32 | (N, {DIM}) | unit length |" in card


def test_a_bundle_without_an_onnx_file_has_no_code_for_onnx_runtime(bundle: Path) -> None:
    manifest = read_bundle(bundle)
    engine = manifest.files[0].model_copy(update={"path": "model.fp16.plan", "runtime": "tensorrt"})
    assert "InferenceSession" not in model_card(manifest.model_copy(update={"files": (engine,)}))


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ("none", "random"),
        ("mobilenetv4_conv_small.e2400_r224_in1k (timm)", "mobilenetv4_conv_small.e2400_r224_in1k (timm)"),
        ("file mine.safetensors", "file mine.safetensors"),
        ("auto", "not recorded: pretrained ones where they could be downloaded, else random"),
        (None, "not recorded"),
    ],
)
def test_the_card_names_the_starting_weights(bundle: Path, recorded: str | None, shown: str) -> None:
    card = model_card(with_student(read_bundle(bundle), weights=recorded))
    assert f"| starting weights | {shown} |" in card


def test_the_card_names_a_cut_and_the_size_of_the_teacher_beside_the_student(bundle: Path) -> None:
    manifest = with_student(read_bundle(bundle), params=700_000, macs=240, architecture={"blocks": 5})
    card = model_card(manifest.model_copy(update={"teacher": {"backbone": "vit", "params": 2_940_000, "macs": 1896}}))
    assert "| network | test_resnet cut after 5 (groups of) blocks, 0.70 M parameters" in card
    hybrid = with_student(read_bundle(bundle), params=700_000, architecture={"blocks": 5, "attention_blocks": 2})
    assert "cut after 5 (groups of) blocks with 2 transformer blocks, 0.70 M" in model_card(hybrid)
    assert "| teacher | vit; the network has 1/4.2 of its parameters and 1/7.9 of its MACs |" in card


def test_notes_are_found_in_cards_of_any_wording(bundle: Path) -> None:
    manifest = read_bundle(bundle)
    card = model_card(manifest, "## Where from\n\nA market.")
    assert notes_in(card, manifest) == "## Where from\n\nA market."
    start, end = card.index("## Use"), card.index("## Limits")
    earlier = card[:start] + "## Use\n\nOther words.\n\n" + card[end:]
    assert notes_in(earlier.replace("| starting weights | not recorded |", "| starting weights | ? |"), manifest) == (
        "## Where from\n\nA market."
    )


@pytest.mark.parametrize("folder", bundled_artifacts(), ids=lambda folder: folder.name)
def test_a_bundled_card_is_that_of_its_manifest(folder: Path) -> None:
    manifest, card = read_bundle(folder), (folder / CARD).read_text(encoding="utf-8")
    notes = notes_in(card, manifest)
    assert "Grocery Store" in notes
    assert card == model_card(manifest, notes)


@pytest.mark.training
def test_starting_weights_are_named_with_their_source(tmp_path: Path) -> None:
    from edgeembed.network.initial_weights import name_starting_weights

    (tmp_path / "w.safetensors").touch()
    assert name_starting_weights("resnet18", "none") == "none"
    assert name_starting_weights("resnet18", str(tmp_path / "w.safetensors")) == "file w.safetensors"
    assert name_starting_weights("ViT-H-14", "laion2b_s32b_b79k") == "ViT-H-14 laion2b_s32b_b79k (open_clip)"
    assert name_starting_weights("resnet18.fb_ssl_yfcc100m_ft_in1k", "pretrained") == (
        "resnet18.fb_ssl_yfcc100m_ft_in1k (timm)"
    )
    assert name_starting_weights("tf_efficientnet_lite0", "pretrained", source="the local cache") == (
        "tf_efficientnet_lite0.in1k (timm, from the local cache)"
    )


def test_the_card_lists_losses_that_are_not_shown_and_keeps_its_notes() -> None:
    manifest = read_bundle(default_bundle())
    loss = {"value": 0.001, "ci95": [-0.01, 0.012], "limit": 0.005, "shown": False, "matched_queries": 16, "classes": 8}
    retrieval = {"queries": 16, "split": "val", "map_loss": {**loss, "queries_needed": 300}}
    files = (manifest.files[0].model_copy(update={"retrieval": retrieval, "runtimes": {}}),)
    changed = manifest.model_copy(update={"files": files})
    card = model_card(changed, "Some notes.")
    assert (
        "in onnxruntime **not shown: 16 matched queries of 8 classes, about 300 needed if it loses nothing: "
        "mAP is 0.10 points [-1.00, 1.20] below fp32's, 0.5 allowed**." in card
    )
    assert notes_in(card, changed) == "Some notes."
    assert "not shown" not in model_card(manifest.model_copy(update={"files": manifest.files[:1]}))
