"""`artifacts diff`: what it finds, what it will not compare, and that figures are those of plain arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeembed.device import comparison
from edgeembed.device.comparison import agreement, open_compared_files, synthetic_images
from edgeembed.device.embedder import Embedder
from edgeembed.errors import UserError
from tests.device.conftest import tiny_network, write_manifest

MakeBundle = Callable[..., Path]
Run = Callable[..., Any]


def test_a_bundle_is_the_same_as_itself(edgeembed: Run, bundle: Path) -> None:
    value = json.loads(edgeembed("artifacts", "diff", bundle, bundle, "--json").stdout)
    assert (value["facts"], value["files"], value["operators"]["counts"]) == ({}, {}, {})
    embeddings = value["embeddings"]
    assert (embeddings["images"], embeddings["same_nearest"], embeddings["max_abs"]) == (64, 64, 0.0)
    assert embeddings["cosine_min"] == pytest.approx(1.0)
    assert "synthetic" in embeddings["source"]
    printed = edgeembed("artifacts", "diff", bundle, bundle)
    assert printed.code == 0
    assert "facts: the same\nfiles: the same\noperators (8 and 8): the same\nembeddings:\n" in printed.stdout
    assert "same nearest neighbour: 64 of 64 images" in printed.stdout


def test_two_precisions_are_compared_on_the_images_given(
    edgeembed: Run, make_bundle: MakeBundle, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_bundle()
    tiny_network(folder / "model.int8.onnx", seed=1)
    write_manifest(folder)
    files = sorted(photos.glob("*.png"))
    command = ["artifacts", "diff", f"{folder}:fp32", f"{folder}:int8", "--data", photos / "bad"]
    result = edgeembed(*command, *(word for file in files for word in ("--data", file)), "--json")
    assert result.code == 0
    value = json.loads(result.stdout)
    assert (value["a"]["precision"], value["b"]["precision"]) == ("fp32", "int8")
    assert value["facts"] == {}
    assert set(value["files"]) == {"model.fp32.onnx against model.int8.onnx"}
    assert set(value["files"]["model.fp32.onnx against model.int8.onnx"]) == {"sha256"}
    a_ND, b_ND = (Embedder(folder, precision=name).embed(files) for name in ("fp32", "int8"))
    found = value["embeddings"]
    cosine_N = (a_ND * b_ND).sum(1)
    assert (found["images"], found["source"]) == (6, "given")
    assert found["cosine_min"] == pytest.approx(cosine_N.min(), abs=1e-6)
    assert found["cosine_p50"] == pytest.approx(np.median(cosine_N), abs=1e-6)
    assert found["max_abs"] == pytest.approx(np.abs(a_ND - b_ND).max(), abs=1e-6)
    nearest_a, nearest_b = ((each @ each.T - 9 * np.eye(6)).argmax(1) for each in (a_ND, b_ND))
    assert found["same_nearest"] == (nearest_a == nearest_b).sum()
    assert [record.message.count("skipped: ") for record in caplog.records] == [1, 1, 1]


def test_two_spaces_are_told_apart_but_their_embeddings_not_compared(edgeembed: Run, make_bundle: MakeBundle) -> None:
    one, two = make_bundle("one"), make_bundle("two", space_id="space-b", seed=1)
    result = edgeembed("artifacts", "diff", one, two)
    assert result.code == 0
    assert "space_id: space-a -> space-b" in result.stdout
    assert "model.fp32.onnx: sha256: " in result.stdout
    assert "not compared: spaces space-a and space-b" in result.stdout


def test_without_onnx_the_operators_are_said_to_be_left_out(
    edgeembed: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison.importlib.util, "find_spec", lambda _: None)
    result = edgeembed("artifacts", "diff", bundle, bundle)
    assert result.code == 0
    assert "not compared: needs the package onnx" in result.stdout


def test_sides_name_their_precision_after_a_colon(
    make_bundle: MakeBundle, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bundle()
    odd = make_bundle("with:int8")

    def precisions(a: object, b: object) -> tuple[str, str]:
        side_a, side_b = open_compared_files(str(a), str(b))
        return side_a.file.precision, side_b.file.precision

    monkeypatch.setattr(comparison, "has_int8_dot_product", lambda: True)
    assert precisions(folder, folder) == ("fp32", "fp32")
    assert precisions(f"{folder}:int8", folder) == ("int8", "int8")
    assert precisions(f"{folder}:int8", bundle) == ("int8", "fp32")
    assert precisions(f"{odd}:int8", odd) == ("int8", "int8")
    assert precisions(odd, f"{folder}:fp32") == ("fp32", "fp32")
    with pytest.raises(UserError, match="no precision 'int4'"):
        open_compared_files(f"{folder}:int4", str(folder))


def test_a_damaged_side_is_refused(make_bundle: MakeBundle, bundle: Path, edgeembed: Run) -> None:
    folder = make_bundle()
    content = (folder / "model.fp32.onnx").read_bytes()
    (folder / "model.fp32.onnx").write_bytes(content[:-1])
    refused = edgeembed("artifacts", "diff", folder, bundle)
    assert refused.code == 1
    assert "bytes, bundle.json says" in refused.stderr


def test_one_image_has_no_neighbour() -> None:
    found = agreement(np.array([[1.0, 0.0]], np.float32), np.array([[0.6, 0.8]], np.float32))
    assert (found["images"], found["same_nearest"]) == (1, None)
    assert found["cosine_min"] == pytest.approx(0.6)
    assert found["max_abs"] == pytest.approx(0.8)


def test_synthetic_images_are_always_the_same_and_all_different() -> None:
    first, second = ([np.asarray(image) for image in synthetic_images()] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len({image.tobytes() for image in first}) == 64
