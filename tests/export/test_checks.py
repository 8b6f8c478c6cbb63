"""Images of the gate grow where they cannot show whether a file keeps its limit, and each is embedded once a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeembed.arrays import UInt8Array
from edgeembed.data.manifest import ManifestRow, build_manifest, write_manifest
from edgeembed.device import image_sources
from edgeembed.device.images import ImageError
from edgeembed.export import checks
from edgeembed.export.checks import Checker
from edgeembed.export.gate_images import GateImages, read_gate_images
from edgeembed.export.recipe import ExportRecipe, GateSection, Thresholds
from edgeembed.model_json import ModelOrigin

NUM_CLASSES = 400
FP32, INT8 = Path("model.fp32.onnx"), Path("model.int8.onnx")


def painted(path: Path) -> Image.Image:
    """An image whose pixels are the number of its class and its own; every 50th file is damaged."""
    label, number = map(int, path.stem.split("_"))
    if label % 50 == 49:
        raise ImageError(f"{path}: damaged")
    return Image.new("RGB", (2, 2), (label // 256, label % 256, number))


def embed(session: str, pixels_NHWC: UInt8Array) -> np.ndarray:
    """One direction a class: every query is followed by the other images of its class."""
    label_N = pixels_NHWC[:, 0, 0, 0].astype(int) * 256 + pixels_NHWC[:, 0, 0, 1]
    embedded[session] = [*embedded.get(session, []), *map(bytes, pixels_NHWC[:, 0, 0])]
    direction_KD = np.random.default_rng(0).normal(size=(NUM_CLASSES, 32)).astype(np.float32)
    direction_KD /= np.linalg.norm(direction_KD, axis=1, keepdims=True)
    found: np.ndarray = direction_KD[label_N]
    return found


embedded: dict[str, list[bytes]] = {}


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(image_sources, "load_rgb", painted)
    monkeypatch.setattr(checks, "open_session", lambda path, **_: path.name)
    monkeypatch.setattr(checks, "run_session", embed)
    embedded.clear()
    rows = [
        ManifestRow(path=f"{label}_{number}.jpg", label=str(label), domain="d", split=split, role=None)
        for split, labels in (("val", range(NUM_CLASSES)), ("test", range(1000, 3000)))
        for label in labels
        for number in range(3)
    ]
    write_manifest(path := tmp_path / "m.parquet", build_manifest(tmp_path, rows, source="test"))
    return path


def images_of(manifest: Path, num_images: int) -> GateImages:
    """`num_images` are paid for, a quarter of them at first."""
    recipe = ExportRecipe(gate=GateSection(max_macs=num_images))
    return read_gate_images(2, 1, ModelOrigin(role="student", space_id="0"), manifest, recipe)


def checker_of(gate: GateImages) -> Checker:
    section = GateSection(fp32=Thresholds(), int8=Thresholds(map_loss=0.005))
    reference_ND = embed("torch", gate.pixels_NHWC[: gate.num_parity])
    checker = Checker(images=gate, reference_ND=reference_ND, gate=section, transformer=False, untrained_map=0.5)
    checker.fp32 = checker.check(FP32, "fp32")
    return checker


def test_whole_classes_of_val_are_taken_until_a_loss_is_shown_to_be_small(manifest: Path) -> None:
    checker = checker_of(images_of(manifest, 600))
    assert checker.fp32 is not None
    first = checker.images.pixels_NHWC
    checked = checker.check_on_enough_images(INT8, "int8")
    loss = checked.gate_result.map_loss
    assert loss is not None
    assert (checked.gate_result.outcome, loss.shown, loss.value) == ("passed", True, 0.0)
    assert loss.matched_queries == len(checker.images.pixels_NHWC) == len(checked.embedding_ND) > 500
    assert (checker.images.pixels_NHWC[: len(first)] == first).all()  # those that torch embedded stay first
    assert len(checker.fp32.embedding_ND) == len(checked.embedding_ND)
    assert checker.untrained_map is None  # of other images
    for path in (FP32, INT8):
        assert len(embedded[path.name]) == len(set(embedded[path.name])) == len(checked.embedding_ND)


def test_no_image_is_added_where_the_largest_sample_is_too_small(manifest: Path) -> None:
    for num_images in (280, 20):  # below 300 queries, and 64 at least
        gate = images_of(manifest, num_images)
        checker = checker_of(gate)
        checked = checker.check_on_enough_images(INT8, "int8")
        assert checked.gate_result.outcome == "NOT SHOWN"
        assert checked.gate_result.queries_needed == 300
        assert checker.images is gate


def test_no_image_is_added_of_too_few_classes(manifest: Path, tmp_path: Path) -> None:
    rows = [
        ManifestRow(path=f"{label}_{number}.jpg", label=str(label), domain="d", split="val", role=None)
        for label in range(39)
        for number in range(100)
    ]
    write_manifest(manifest, build_manifest(tmp_path, rows, source="test"))
    assert images_of(manifest, 2000).enlarged(300) is None


def test_test_stays_held_out_where_val_is_too_small(manifest: Path) -> None:
    everything = images_of(manifest, 1_000_000)
    assert everything.evaluation.split == "val"
    assert len(everything.rows) == (NUM_CLASSES - 8) * 3  # 8 classes are damaged
    assert everything.enlarged(10) is None


def test_a_file_that_was_checked_on_fewer_images_is_checked_on_the_others_too(manifest: Path) -> None:
    checker = checker_of(images_of(manifest, 600))
    earlier = checker.check(Path("model.fp16.onnx"), "fp16")
    checker.check_on_enough_images(INT8, "int8")
    extended = checker.extend(earlier, "fp16")
    assert len(extended.embedding_ND) == len(checker.images.pixels_NHWC) > len(earlier.embedding_ND)
    assert checker.extend(extended, "fp16") is extended


@pytest.mark.parametrize(
    ("change", "defect"),
    [
        (lambda embedding_ND: embedding_ND * np.nan, "gives vectors of length nan, expected 1"),
        (lambda embedding_ND: embedding_ND[:, :8], "gives an output of shape (64, 8), expected (64, 32)"),
        (lambda embedding_ND: 0 * embedding_ND, "gives vectors of length 0.0000, expected 1"),
    ],
)
def test_a_broken_file_is_refused_by_its_defect_whatever_the_thresholds(
    manifest: Path, change: Callable[[np.ndarray], np.ndarray], defect: str
) -> None:
    checker = checker_of(images_of(manifest, 20))
    checker.gate = GateSection(int8=Thresholds())
    assert checker.fp32 is not None
    sound_ND = checker.fp32.embedding_ND
    assert not checker.evaluate(INT8, sound_ND, "int8").is_broken
    result = checker.evaluate(INT8, change(sound_ND), "int8")
    assert result.is_broken
    assert (result.gate_result.reasons, result.gate_result.outcome, result.scored) == ((defect,), "REFUSED", None)
    assert checks.describe(result, None) == f"{defect}: REFUSED"


def test_the_sample_and_its_counts_agree(manifest: Path) -> None:
    gate = images_of(manifest, 600)
    larger = gate.enlarged(300)
    assert larger is not None
    scored = larger.score(embed("x", larger.pixels_NHWC))
    assert scored is not None
    scores = scored.scores
    assert larger.summary(scores)["queries"] == larger.summary(scores)["index"] == len(larger.rows)
    assert (scores.map, scores.queries_without_match) == (1.0, 0)
    assert larger.evaluation.fingerprint != gate.evaluation.fingerprint
