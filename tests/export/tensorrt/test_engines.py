"""Engines: refused in one line where TensorRT is missing, the rest written; tied to their file, GPU and version."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeembed.data.manifest import read_manifest
from edgeembed.device.bundle import read_bundle, write_bundle
from edgeembed.device.bundle_schema import EngineFacts
from edgeembed.device.embedder import Embedder, default_bundle
from edgeembed.errors import CheckFailed, UserError
from edgeembed.export.card import model_card, notes_in
from edgeembed.files import sha256_of
from tests.conftest import Outcome

Run = Callable[..., Outcome]

has_tensorrt = importlib.util.find_spec("tensorrt") is not None
without_tensorrt = pytest.mark.skipif(has_tensorrt, reason="TensorRT is installed")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for position in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{position}.png")
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(default_bundle(), tmp_path / "bundle"))


@without_tensorrt
def test_without_tensorrt_a_run_is_exported_and_the_engines_are_refused_by_the_missing_package(
    edgeembed: Run, tiny_student: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = ("export", tiny_student, "--data", tiny_data, "--precision", "fp32", "--out", out, "--tensorrt")
    outcome = edgeembed(*asked)
    assert outcome.code == 1
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "needs the package tensorrt, which the extra [tensorrt] provides" in errors[0]
    assert [file.path for file in read_bundle(out).files] == ["model.fp32.onnx"]
    assert edgeembed("artifacts", "verify", out).code == 0


@without_tensorrt
def test_without_tensorrt_a_bundle_stays_as_it_is(edgeembed: Run, bundle: Path, photographs: Path) -> None:
    before = {path.name: sha256_of(path) for path in bundle.iterdir()}
    outcome = edgeembed("export", bundle, "--tensorrt", "--data", photographs)
    assert outcome.code == 1
    assert "needs the package tensorrt" in outcome.stderr
    assert {path.name: sha256_of(path) for path in bundle.iterdir()} == before


def test_a_bundle_needs_images_to_compare_its_engines_on(
    edgeembed: Run, bundle: Path, photographs: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((), "is a bundle already"),
        (("--tensorrt",), "give a folder of them with --data"),
        (("--tensorrt", "--data", tmp_path / "empty"), "empty: holds no image that can be read"),
        (("--tensorrt", "--data", photographs, "--precision", "fp16"), "has no fp16 file, it holds fp32, int8"),
    ):
        outcome = edgeembed("export", bundle, *arguments)
        assert (outcome.code, message in outcome.stderr) == (2, True), outcome.stderr


def with_engine(bundle: Path, *, onnx_sha256: str) -> None:
    """Adds bytes that pass for an engine."""
    (bundle / "model.fp32.plan").write_bytes(b"plan")
    manifest = read_bundle(bundle)
    source = next(file for file in manifest.files if file.precision == "fp32")
    facts = EngineFacts(tensorrt="10.3.0", gpu="none", compute_capability="9.0", onnx_sha256=onnx_sha256, max_batch=16)
    added = {"path": "model.fp32.plan", "runtime": "tensorrt", "bytes": 4, "engine": facts}
    engine = source.model_copy(update={**added, "sha256": sha256_of(bundle / "model.fp32.plan"), "runtimes": {}})
    others = tuple(file for file in manifest.files if file.path != engine.path)
    manifest = manifest.model_copy(update={"files": (*others, engine)})
    write_bundle(bundle, manifest, (bundle / "MODEL_CARD.md").read_text())


def test_an_engine_of_another_file_is_refused(bundle: Path) -> None:
    source = next(file for file in read_bundle(bundle).files if file.precision == "fp32")
    with_engine(bundle, onnx_sha256=source.sha256)
    assert [file.path for file in read_bundle(bundle).files if file.engine] == ["model.fp32.plan"]
    with pytest.raises(CheckFailed, match=r"model\.fp32\.plan was built from another fp32 file"):
        with_engine(bundle, onnx_sha256="0" * 64)


@without_tensorrt
def test_a_bundle_with_engines_is_used_without_tensorrt(bundle: Path) -> None:
    source = next(file for file in read_bundle(bundle).files if file.precision == "fp32")
    with_engine(bundle, onnx_sha256=source.sha256)
    assert Embedder(bundle).runtime == "onnxruntime"
    with pytest.raises(ModuleNotFoundError, match="tensorrt"):
        Embedder(bundle, runtime="tensorrt")


def test_a_bundle_without_engines_says_how_they_are_built(bundle: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.plan file: `edgeembed export BUNDLE --tensorrt`"):
        Embedder(bundle, runtime="tensorrt")


def test_a_card_keeps_its_notes_when_files_are_added(bundle: Path) -> None:
    manifest = read_bundle(bundle)
    card = model_card(manifest, "## Where from\n\nA market.")
    assert notes_in(card, manifest) == "## Where from\n\nA market."
    assert notes_in(model_card(manifest), manifest) == ""
    assert notes_in("# somebody else's", manifest) == ""


@pytest.mark.tensorrt
@pytest.mark.skipif(not has_tensorrt, reason="TensorRT is missing: engines are not built in this run")
def test_engines_are_built_inspected_verified_and_run(edgeembed: Run, bundle: Path, tiny_data: Path) -> None:
    table = read_manifest(tiny_data)
    folder = Path(table.files[0]).parent
    outcome = edgeembed("export", bundle, "--tensorrt", "--data", folder, "--precision", "fp32,int8")
    assert outcome.code == 0, outcome.stderr
    built = {file.precision: file for file in read_bundle(bundle).files if file.engine}
    assert set(built) == {"fp32", "int8"}
    assert Embedder(bundle, runtime="tensorrt").provider.startswith("NVIDIA")
    for precision, file in built.items():
        assert file.parity is not None
        assert file.parity.cosine_p50 > 0.98
        embedder = Embedder(bundle, runtime="tensorrt", precision=precision)
        assert embedder.embed_pixels(np.zeros((33, embedder.height, embedder.width, 3), np.uint8)).shape[0] == 33
