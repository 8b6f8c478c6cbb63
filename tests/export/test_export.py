"""Exports are self-contained, annotated, equal to torch on real pixels, refused when worse, and replaced whole."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgeembed.data.manifest import read_manifest, write_manifest
from edgeembed.device.bundle import read_bundle
from edgeembed.device.bundle_schema import BundleManifest, Quantisation
from edgeembed.device.embedder import Embedder, bundled_artifacts
from edgeembed.errors import UserError
from edgeembed.evaluation import RetrievalProtocol
from edgeembed.export import export as export_module
from edgeembed.export import exported_files
from edgeembed.export import onnx as onnx_module
from edgeembed.export.card import model_card, notes_in
from edgeembed.export.export import export_run
from edgeembed.export.fp16 import to_fp16
from edgeembed.export.gate_images import read_gate_images
from edgeembed.export.onnx import to_onnx
from edgeembed.export.recipe import ExportRecipe, GateSection, parse_precisions
from edgeembed.files import sha256_of
from edgeembed.network.macs import count_macs
from edgeembed.network.model_files import load_model
from edgeembed.student.zoo import build_student
from tests.conftest import Outcome, as_options
from tests.export.int8.models import int8_weights, to_int8

Run = Callable[..., Outcome]
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)

# A calibration that cuts off nearly half of the values, and a gate that only a float file could pass.
HARMED = as_options(["int8.calibration=percentile", "int8.percentile=51", "gate.int8.cosine_p50=1.0"])


@pytest.fixture(scope="module")
def all_val(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 120 images as the val split, which has 12 of them otherwise."""
    table = read_manifest(tiny_data)
    everything = dataclasses.replace(table, split=("val",) * len(table))
    write_manifest(path := tmp_path_factory.mktemp("all_val") / "manifest.parquet", everything)
    return path


@pytest.fixture(scope="module")
def bundle(tiny_student: Path, all_val: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    manifest, refused = export_run(tiny_student, out, precisions=["fp32", "fp16", "int8"], data=all_val, licence="MIT")
    assert manifest is not None
    assert [item.precision for item in refused if item.precision != "int8"] == []
    return out


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_the_bundle_holds_what_the_design_names(bundle: Path, tiny_student: Path) -> None:
    facts = json.loads((bundle / "bundle.json").read_text())
    assert {
        "schema",
        "name",
        "space_id",
        "embedding",
        "input",
        "files",
        "teacher",
        "student",
        "data",
        "licence",
    } <= set(facts)
    assert facts["space_id"] == load_model(tiny_student)[1].space_id
    for file in facts["files"]:
        assert sha256_of(bundle / file["path"]) == file["sha256"]
        assert (bundle / file["path"]).stat().st_size == file["bytes"]
        assert file["parity"]["cosine_p1"] > 0.9
    assert "## Limits" in (bundle / "MODEL_CARD.md").read_text()
    assert {path.suffix for path in bundle.iterdir()} == {".json", ".md", ".onnx"}


def test_the_graph_is_as_designed(bundle: Path) -> None:
    for file in read_bundle(bundle).files:
        model = onnx.load(bundle / file.path)
        onnx.checker.check_model(model)
        (taken,), (given,) = model.graph.input, model.graph.output
        assert (taken.name, taken.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
        assert (given.name, given.type.tensor_type.elem_type) == ("embedding", onnx.TensorProto.FLOAT)
        dims = taken.type.tensor_type.shape.dim
        assert dims[0].dim_param
        assert [dim.dim_value for dim in dims[1:]] == [32, 32, 3]
        properties = {item.key: item.value for item in model.metadata_props}
        assert properties["space_id"] == read_bundle(bundle).space_id
        assert properties["licence"] == "MIT"


def test_files_equal_torch_for_every_batch_size(bundle: Path, tiny_student: Path) -> None:
    model, _ = load_model(tiny_student)
    pixels = PIXELS[:, :32, :32]
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2)).numpy()
    run = session(bundle / "model.fp32.onnx")
    for batch in (1, 3, 12):
        found = run.run(None, {"image": np.ascontiguousarray(pixels[:batch])})[0]
        assert np.abs(found - expected[:batch]).max() < 1e-5
        assert np.allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("name", ["fastvit_t8", "repvit_m1", "mobilenetv4_s", "vit_t16"])
def test_families_export_fused_and_quantised(name: str) -> None:
    torch.manual_seed(0)
    model = build_student(name, weights="none", size_px=64, dim=64).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(PIXELS).permute(0, 3, 1, 2)).numpy()
    exported = to_onnx(model, {"space_id": "x"})
    first = exported.graph.node
    assert not any(node.op_type == "Div" for node in list(first)[:6])
    kinds = {node.op_type for node in first}
    assert not kinds & {"Range", "GatherND", "Gather"} or name == "vit_t16"
    assert "GlobalAveragePool" in kinds or name == "vit_t16"
    for converted, cosine in ((exported, 0.99999), (to_fp16(exported), 0.995), (to_int8(exported, PIXELS), 0.8)):
        run = onnxruntime.InferenceSession(converted.SerializeToString(), providers=["CPUExecutionProvider"])
        found = run.run(None, {"image": PIXELS})[0]
        assert np.median((found * expected).sum(axis=1)) > cosine


def test_precisions_are_parsed_and_fp32_comes_first() -> None:
    assert parse_precisions("int8") == ["fp32", "int8"]
    assert parse_precisions("int8, fp32,fp16") == ["fp32", "fp16", "int8"]
    with pytest.raises(UserError, match="unknown precision 'int4': did you mean 'int8'"):
        parse_precisions("int4")


def test_a_refused_precision_is_left_out_with_exit_1(
    edgeembed: Run, tiny_student: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    arguments = ("export", tiny_student, "--precision", "fp32,int8", "--set", "int8.reduce_range=true", *HARMED)
    outcome = edgeembed(*arguments, "--out", tmp_path / "b")
    assert outcome.code == 1
    assert "error: int8 refused: cosine p50" in outcome.stderr
    assert "operators alone" in caplog.text
    assert "Collecting" not in outcome.stdout
    assert [file.precision for file in read_bundle(tmp_path / "b").files] == ["fp32"]
    assert not list(tmp_path.glob(".*"))


def test_where_fp32_is_refused_nothing_is_written(edgeembed: Run, tiny_student: Path, tmp_path: Path) -> None:
    outcome = edgeembed("export", tiny_student, "--out", tmp_path / "b", "--set", "gate.fp32.relative_error_p50=0")
    assert outcome.code == 1
    assert "error: fp32 refused: error is 0.000 of the mean distance between images" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_worse_file_is_written_where_that_is_accepted_and_says_so(
    edgeembed: Run, tiny_student: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "notes.md").write_text("Trained on rendered things.")
    arguments = ("export", tiny_student, "--out", tmp_path / "b", *HARMED)
    refused = edgeembed(*arguments, "--notes", tmp_path / "nothing.md")
    assert (refused.code, "nothing.md: cannot be read (No such file" in refused.stderr) == (2, True)
    outcome = edgeembed(*arguments, "--accept-worse", "--notes", tmp_path / "notes.md")
    assert outcome.code == 0, outcome.stderr
    assert "int8 is worse than promised, and accepted: cosine p50" in caplog.text
    file = next(file for file in read_bundle(tmp_path / "b").files if file.precision == "int8")
    assert "cosine p50" in file.accepted_worse[0]
    card = (tmp_path / "b" / "MODEL_CARD.md").read_text()
    assert f"its gate refused it: {file.accepted_worse[0]}" in card
    assert "Trained on rendered things." in card


def test_operators_return_to_float32_until_the_gate_passes(edgeembed: Run, tiny_student: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    assert edgeembed("export", tiny_student, "--out", first, "--set", "gate.int8={}").code == 0
    (file,) = (file for file in read_bundle(first).files if file.precision == "int8")
    assert file.parity is not None
    assert file.quantisation is not None
    assert file.quantisation.float_operators == ()
    threshold = file.parity.cosine_p50 + 0.3 * (1 - file.parity.cosine_p50)
    second = tmp_path / "second"
    assert (
        edgeembed("export", tiny_student, "--out", second, "--set", f"gate.int8={{cosine_p50: {threshold}}}").code == 0
    )
    (file,) = (file for file in read_bundle(second).files if file.precision == "int8")
    assert file.parity is not None
    assert file.quantisation is not None
    assert file.parity.cosine_p50 >= threshold
    assert file.quantisation.float_operators


def test_weights_above_the_limit_of_one_message_lie_beside_the_graph(
    edgeembed: Run, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_module, "MAX_PROTOBUF_BYTES", 100_000)
    monkeypatch.setattr(export_module, "MAX_PROTOBUF_BYTES", 100_000)
    refused = edgeembed("export", tiny_student, "--out", tmp_path / "b", "--precision", "int8")
    assert (refused.code, "int8 needs a network below" in refused.stderr) == (2, True)
    assert edgeembed("export", tiny_student, "--out", tmp_path / "b", "--precision", "fp32").code == 0
    files = {file.path: file for file in read_bundle(tmp_path / "b").files}
    assert list(files) == ["model.fp32.onnx", "model.fp32.onnx.data"]
    assert files["model.fp32.onnx"].bytes < 100_000 < files["model.fp32.onnx.data"].bytes
    assert sha256_of(tmp_path / "b" / "model.fp32.onnx.data") == files["model.fp32.onnx.data"].sha256
    assert Embedder(tmp_path / "b").embed_pixels(PIXELS[:2, :32, :32]).shape == (2, 64)
    (tmp_path / "b" / "model.fp32.onnx.data").unlink()
    verified = edgeembed("artifacts", "verify", tmp_path / "b")
    assert verified.code == 1
    assert "model.fp32.onnx.data: named in bundle.json but missing" in verified.stdout + verified.stderr


@pytest.mark.parametrize(("budget", "num_images"), [(1e20, 120), (1.0, 64)])
def test_the_gate_takes_as_many_images_as_it_can_afford(
    tiny_student: Path, all_val: Path, budget: float, num_images: int
) -> None:
    model, origin = load_model(tiny_student)
    recipe = ExportRecipe(gate=GateSection(max_macs=budget))
    images = read_gate_images(model.size_px, count_macs(model), origin, all_val, recipe)
    assert len(images.rows) == images.num_parity == num_images
    assert np.isin(images.evaluation.query, images.rows).all()
    assert np.isin(images.evaluation.index, images.rows).all()


def test_a_file_whose_loss_is_not_shown_is_written_with_a_warning(
    edgeembed: Run, tiny_student: Path, all_val: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ("export", tiny_student, "--data", all_val, "--precision", "fp32,fp16", "--out", tmp_path / "b")
    outcome = edgeembed(*arguments, "--json")
    assert outcome.code == 0, outcome.stderr
    fp16 = next(file for file in json.loads(outcome.stdout)["files"] if file["precision"] == "fp16")
    loss = fp16["retrieval"]["map_loss"]
    assert (loss["limit"], loss["shown"], loss["matched_queries"]) == (0.005, False, 120)
    assert loss["queries_needed"] >= 300
    assert loss["classes_needed"] == (40 if loss["classes"] < 40 else None)
    needed = "of at least 40 classes needed" if loss["classes"] < 40 else "needed if it loses nothing"
    message = f"not shown: 120 matched queries of {loss['classes']} classes, about {loss['queries_needed']} {needed}"
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(text.startswith(f"model.fp16.onnx in onnxruntime: {message}") and "--data" in text for text in warned)
    assert any(text.startswith(f"model.fp16.onnx in openvino: {message}") for text in warned)
    assert f"in onnxruntime **{message}" in (tmp_path / "b" / "MODEL_CARD.md").read_text()
    assert "not shown" not in [record.getMessage() for record in caplog.records if "model.fp32" in record.getMessage()]
    verified = json.loads(edgeembed("artifacts", "verify", tmp_path / "b", "--json").stdout)["files"]
    results = {row["file"]: row["result"] for row in verified}
    assert message in results["model.fp16.onnx"]
    assert "not shown" not in results["model.fp32.onnx"]


def test_a_failing_export_leaves_the_old_bundle(
    bundle: Path, tiny_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sha256_of(bundle / "bundle.json")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exported_files, "save_onnx", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_run(tiny_student, bundle, precisions=["fp32"])
    assert sha256_of(bundle / "bundle.json") == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--precision", "fp31"], "unknown precision 'fp31'"),
        (["--out", "."], "is the current folder, which another folder cannot replace"),
        (["--out", "mine"], "exists and is not a bundle"),
    ],
)
def test_mistakes_are_one_line(
    edgeembed: Run, tiny_student: Path, arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.txt").touch()
    monkeypatch.chdir(tmp_path)
    outcome = edgeembed("export", tiny_student, *arguments)
    assert outcome.code == 2
    assert told in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1


def test_a_run_that_is_not_finished_is_refused(edgeembed: Run, tmp_path: Path) -> None:
    outcome = edgeembed("export", tmp_path / "nothing")
    assert outcome.code == 2
    assert "holds no finished run" in outcome.stderr


def test_the_card_says_for_which_cpus_int8_is_right_and_keeps_the_notes_of_older_cards(bundle: Path) -> None:
    manifest = read_bundle(bundle)

    def with_int8(**quantisation: Any) -> BundleManifest:
        made = {"path": "model.int8.onnx", "precision": "int8", "quantisation": Quantisation(**quantisation)}
        return manifest.model_copy(update={"files": (manifest.files[0].model_copy(update=made),)})

    narrow, wide = with_int8(reduce_range=True, cpus="any"), with_int8(cpus="int8 dot products")
    card = model_card(narrow, "Some notes.")
    assert "7-bit weights, right on every CPU" in card
    assert "8-bit weights, **right only on CPUs with int8 dot products**" in model_card(wide)
    assert notes_in(card, narrow) == "Some notes."
    assert notes_in(card.replace("; 7-bit weights, right on every CPU", ""), narrow) == "Some notes."
    assert notes_in(card.replace("Limits", "Changed"), narrow) == ""


@pytest.mark.parametrize("folder", bundled_artifacts(), ids=lambda folder: folder.name)
def test_a_bundled_int8_file_is_right_on_every_cpu(folder: Path) -> None:
    (file,) = (file for file in read_bundle(folder).files if file.precision == "int8")
    assert not file.needs_int8_dot_products
    weights = int8_weights(onnx.load(folder / file.path))
    assert len(weights) > 20
    assert max(int(np.abs(weight.astype(np.int32)).max()) for weight in weights) <= 64


def test_figures_are_recorded_beside_chance_and_an_untrained_network(bundle: Path, all_val: Path) -> None:
    manifest = read_bundle(bundle)
    known = manifest.evaluation
    assert known is not None
    assert known.not_scored is None
    assert known.chance is not None
    assert known.spread is not None
    planned = RetrievalProtocol.of_first_scorable(read_manifest(all_val), "test", "val")
    figures = known.untrained_on(planned.fingerprint)
    assert figures is not None
    assert figures["map"] is not None
    assert 0 < figures["map"] < 1
    assert 0 < (known.chance["map"] or 0) < 0.2  # 5 of 119 images are relevant
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "| mAP | chance | untrained | recall@1 |" in card
    assert f"| {known.chance['map']:.4f} | {figures['map']:.4f} |" in card
    assert f"mean cosine {known.spread.mean_cosine:.3f} between different images" in card
    assert ("is collapsed" in card) == known.collapsed
    file = manifest.files[0]
    assert file.retrieval is not None
    assert file.retrieval["chance"]["map"] == known.chance["map"]


@pytest.mark.parametrize("case", ["train only", "one image a label", "no labels"])
def test_an_export_that_cannot_be_scored_is_decided_by_cosine_and_says_so(
    tiny_data: Path, tiny_student: Path, tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = read_manifest(tiny_data)
    changes: dict[str, Any] = {
        "train only": {"split": ("train",) * len(table)},
        "one image a label": {"split": ("val",) * len(table), "label": tuple(map(str, range(len(table))))},
        "no labels": {"label": (None,) * len(table)},
    }[case]
    write_manifest(data := tmp_path / "m.parquet", dataclasses.replace(table, **changes))
    manifest, refused = export_run(tiny_student, tmp_path / "b", precisions=["fp32"], data=data)
    assert manifest is not None
    assert refused == []
    assert manifest.evaluation is not None
    assert "val: " in str(manifest.evaluation.not_scored)
    assert (manifest.evaluation.untrained, manifest.evaluation.chance) == ((), None)
    assert manifest.files[0].retrieval is None
    assert "the gate decides by cosine alone, retrieval is not scored" in caplog.text
    card = (tmp_path / "b" / "MODEL_CARD.md").read_text()
    assert "Retrieval was not scored, files were judged by cosine alone" in card
    assert "| not scored |" in card


def test_cards_of_bundles_without_these_figures_stay_as_they_are(bundle: Path) -> None:
    older = read_bundle(bundle).model_copy(update={"evaluation": None})
    assert "| mAP | recall@1 |" in model_card(older)
    assert notes_in(model_card(older, "Notes."), older) == "Notes."
