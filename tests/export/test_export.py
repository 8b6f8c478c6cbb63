"""Exports: self-contained, annotated, equal to torch on real pixels, refused when worse, replaced whole."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgeembed.bundle import read_bundle, sha256_of
from edgeembed.data.manifest import read_manifest, write_manifest
from edgeembed.errors import UserError
from edgeembed.export import export as export_module
from edgeembed.export import gate
from edgeembed.export.export import export_run
from edgeembed.export.gate import judge, parity
from edgeembed.export.onnx import to_onnx
from edgeembed.export.precision import attention_nodes, parse_precisions, to_fp16, to_int8, weight_products
from edgeembed.student.zoo import build_student
from edgeembed.teacher.saved import load_model
from tests.conftest import Outcome

Run = Callable[..., Outcome]
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def bundle(tiny_student: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    # Judged on all 120 images: among the 12 of its val split, one pair that changes places moves mAP by half a point.
    table = read_manifest(tiny_data)
    everything = dataclasses.replace(table, split=("val",) * len(table))
    write_manifest(judged := tmp_path_factory.mktemp("judged") / "manifest.parquet", everything)
    manifest, refused = export_run(tiny_student, out, precisions=["fp32", "fp16", "int8"], data=judged, licence="MIT")
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
    assert facts["space_id"] == load_model(tiny_student)[1]["space_id"]
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
    for converted, cosine in ((exported, 0.99999), (to_fp16(exported), 0.995), (to_int8(exported, PIXELS), 0.8)):
        run = onnxruntime.InferenceSession(converted.SerializeToString(), providers=["CPUExecutionProvider"])
        found = run.run(None, {"image": PIXELS})[0]
        assert np.median((found * expected).sum(axis=1)) > cosine


def test_only_products_with_weights_are_quantised_in_a_transformer() -> None:
    model = to_onnx(build_student("test_vit", weights="none", size_px=32, dim=64).eval(), {})
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert 0 < len(weight_products(model)) < len(products) or all(node.op_type == "Gemm" for node in products)
    quantised = to_int8(model, PIXELS[:, :32, :32].copy())
    kept = {"Softmax", "LayerNormalization", "Gelu", "Add"}
    dequantised = {name for node in quantised.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    for node in quantised.graph.node:
        if node.op_type in kept:
            assert not dequantised & set(node.input[:1]), node.name


def test_linear_attention_between_convolutions_stays_in_float() -> None:
    model = to_onnx(build_student("efficientvit_b0", weights="none", size_px=64, dim=64).eval(), {})
    quantised = to_int8(model, PIXELS)
    made_by = {output: node.op_type for node in quantised.graph.node for output in node.output}
    products = [node for node in quantised.graph.node if node.op_type == "MatMul"]
    assert len(products) == 8
    assert not any(made_by.get(name) == "DequantizeLinear" for node in products for name in node.input)
    assert attention_nodes(to_onnx(build_student("mobilenetv4_s", weights="none", size_px=64, dim=64).eval(), {})) == []


@pytest.mark.parametrize("name", ["mobilenetv4_s", "repvit_m1"])
def test_a_vector_is_not_rounded_before_its_length_is_divided_out(name: str) -> None:
    model = to_onnx(build_student(name, weights="none", size_px=32, dim=64).eval(), {})
    quantised = to_int8(model, PIXELS[:, :32, :32].copy())
    made_by = {output: node.op_type for node in quantised.graph.node for output in node.output}
    norm = next(node for node in quantised.graph.node if node.op_type == "ReduceL2")
    assert made_by[norm.input[0]] == "Gemm"


def test_precisions_are_parsed_and_fp32_comes_first() -> None:
    assert parse_precisions("int8") == ["fp32", "int8"]
    assert parse_precisions("int8, fp32,fp16") == ["fp32", "fp16", "int8"]
    with pytest.raises(UserError, match="unknown precision 'int4': did you mean 'int8'"):
        parse_precisions("int4")


def unit(count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(1)
    reference = draw.normal(size=(count, 64)).astype(np.float32)
    other = reference + noise * draw.normal(size=(count, 64)).astype(np.float32)
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (reference, other))


def test_the_gate_names_the_figure_that_fails() -> None:
    good, bad = parity(*unit(50, 0.0)), parity(*unit(50, 0.5))
    assert judge("fp32", good, 0.7, None).reasons == ()
    assert "cosine p1" in judge("fp32", bad, 0.7, None).reasons[0]
    assert "cosine p50" in judge("int8", bad, 0.7, 0.7).reasons[0]
    assert judge("int8", good, 0.695, 0.7).reasons == ()
    assert "2.00 points below" in judge("int8", good, 0.68, 0.7).reasons[0]
    broken = unit(5, 0.0)[0]
    assert parity(broken, broken * np.nan).cosine_p1 == -1.0


def test_a_refused_precision_is_left_out_with_exit_1(
    edgeembed: Run, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gate.MIN_COSINE_P50, "int8", 1.1)
    outcome = edgeembed("export", tiny_student, "--out", tmp_path / "b", "--precision", "fp32,int8")
    assert outcome.code == 1
    assert "error: int8 refused: cosine p50" in outcome.stderr
    assert [file.precision for file in read_bundle(tmp_path / "b").files] == ["fp32"]
    monkeypatch.setitem(gate.MIN_COSINE_P1, "fp32", 1.1)
    assert edgeembed("export", tiny_student, "--out", tmp_path / "none").code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_failing_export_leaves_the_old_bundle(
    bundle: Path, tiny_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sha256_of(bundle / "bundle.json")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_run(tiny_student, bundle, precisions=["fp32"])
    assert sha256_of(bundle / "bundle.json") == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--precision", "fp31"], "unknown precision 'fp31'"), (["--out", "."], "exists and is not a bundle")],
)
def test_mistakes_are_one_line(
    edgeembed: Run, tiny_student: Path, arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").touch()
    monkeypatch.chdir(tmp_path)
    outcome = edgeembed("export", tiny_student, *arguments)
    assert outcome.code == 2
    assert told in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1


def test_a_run_that_is_not_finished_is_refused(edgeembed: Run, tmp_path: Path) -> None:
    outcome = edgeembed("export", tmp_path / "nothing")
    assert outcome.code == 2
    assert "holds no finished run" in outcome.stderr
