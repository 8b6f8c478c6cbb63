"""int8: which operators are rounded, which ranges are taken, and what goes back to float."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from PIL import Image

from edgeembed.export.int8.quantise import Quantiser, distance, embed, float_nodes, int8_attempts, weight_products
from edgeembed.export.int8.residual_sums import PARTS
from edgeembed.export.int8.stem import patch_moments, round_together, stem_chain
from edgeembed.export.onnx import to_onnx
from edgeembed.export.recipe import Int8Section
from edgeembed.student.zoo import build_student

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
SMALL = np.ascontiguousarray(PIXELS[:, :32, :32])
MINMAX = Int8Section(calibration="minmax")


def to_int8(model: onnx.ModelProto, pixels_NHWC: np.ndarray) -> onnx.ModelProto:
    return next(int8_attempts(model, pixels_NHWC, pixels_NHWC, MINMAX)).model


@pytest.fixture(scope="module")
def convolutional() -> onnx.ModelProto:
    return to_onnx(build_student("resnet_xs", weights="none", size_px=32, dim=64).eval(), {"space_id": "x"})


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
    assert not float_nodes(to_onnx(build_student("mobilenetv4_s", weights="none", size_px=64, dim=64).eval(), {}))


@pytest.mark.parametrize("name", ["efficientvit_m0", "mobilevit_xxs", "convnext_atto"])
def test_what_has_convolutions_and_attention_or_norms_is_rounded_in_both(name: str) -> None:
    model = to_onnx(build_student(name, weights="none", size_px=64, dim=64).eval(), {})
    quantised = to_int8(model, PIXELS)
    assert quantised.ByteSize() < 0.3 * model.ByteSize()
    made_by = {output: node.op_type for node in quantised.graph.node for output in node.output}
    read_by = {reads: node.op_type for node in quantised.graph.node for reads in node.input}
    weighted = set(weight_products(model))
    for node in quantised.graph.node:
        if node.op_type == "Softmax" or (node.op_type == "MatMul" and node.name not in weighted):
            assert not any(made_by.get(read) == "DequantizeLinear" for read in node.input), node.name
        if node.op_type in ("MatMul", "Softmax"):
            assert read_by[node.output[0]] != "QuantizeLinear", node.name


@pytest.mark.parametrize("name", ["resnet_xs", "fastvit_t8"])
def test_what_stays_in_float_is_not_rounded_by_the_runtime(name: str, tmp_path: Path) -> None:
    """By the first convolutions here, and in FastViT by those that make several channels of each."""
    model = to_onnx(build_student(name, weights="none", size_px=32, dim=64).eval(), {})
    quantiser = Quantiser(model, SMALL, tmp_path, MINMAX)
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    quantised = quantiser.quantise("minmax", keep_float=convolutions[2:6])
    assert distance(quantised, SMALL, embed(model, SMALL)) < 0.01
    rounded = {tensor.name for tensor in quantised.graph.initializer if tensor.data_type == TensorProto.INT8}
    made_by = {output: node for node in quantised.graph.node for output in node.output}
    products = [node for node in quantised.graph.node if node.op_type == "Conv"]
    in_int8 = [node for node in products if node.input[1] in made_by and made_by[node.input[1]].input[0] in rounded]
    assert len(in_int8) <= len(convolutions) - 4
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(quantised.SerializeToString(), options, providers=["CPUExecutionProvider"])
    loaded = [node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node]
    # The first one, whose output is not rounded before a Gelu, is left in float by the runtime.
    assert len(in_int8) - 1 <= loaded.count("QLinearConv") <= len(in_int8)
    assert loaded.count("QLinearConv") + loaded.count("Conv") + loaded.count("FusedConv") == len(convolutions)


@pytest.mark.parametrize("name", ["resnet_xs", "test_vit", "mobilenetv4_s"])
def test_the_first_convolution_multiplies_the_bytes_of_the_image(name: str, tmp_path: Path) -> None:
    model = to_onnx(build_student(name, weights="none", size_px=32, dim=64).eval(), {})
    quantiser = Quantiser(model, SMALL, tmp_path, MINMAX)
    (stem,) = (node.name for node in stem_chain(model.graph)[-1:])
    rounded = quantiser.quantise("minmax", only=[stem])
    kinds = [node.op_type for node in rounded.graph.node]
    assert not {"Cast", "Sub"} & set(kinds[: kinds.index("Conv")])
    constants = {tensor.name: tensor.data_type for tensor in rounded.graph.initializer}
    assert TensorProto.INT8 in constants.values()
    assert set(constants) <= {name for node in rounded.graph.node for name in node.input}
    assert distance(rounded, SMALL, embed(model, SMALL)) < 0.002
    for keep_float in ([stem], []):
        kinds = [node.op_type for node in quantiser.quantise("minmax", keep_float=keep_float).graph.node]
        assert ("Sub" in kinds[: kinds.index("Conv")]) is bool(keep_float)


def test_weights_rounded_together_vary_less_than_each_on_its_own(convolutional: onnx.ModelProto) -> None:
    """On pixels that are like their neighbours, as photographs' are."""
    smooth_NHWC = np.asarray(Image.fromarray(PIXELS[0, :8, :8]).resize((64, 64), Image.Resampling.BICUBIC))[None]
    convolution = stem_chain(convolutional.graph)[-1]
    mean_P, covariance_PP = patch_moments(smooth_NHWC, 100, (3, 3), convolution)
    patches = np.pad(smooth_NHWC[0] - 100.0, ((1, 1), (1, 1), (0, 0)))
    assert mean_P.shape == (27,)
    np.testing.assert_allclose(patches[1::2, 1::2, 2].mean(), mean_P.reshape(3, 3, 3)[2, 1, 1], atol=20)
    weight_KP = np.random.default_rng(0).normal(0, 9, (16, 27))
    harm = []
    for rounded_KP in (np.round(weight_KP), round_together(weight_KP, covariance_PP, 127)):
        assert np.abs(rounded_KP - weight_KP).max() < 4
        error_KP = rounded_KP - weight_KP
        harm.append(np.einsum("kp,pq,kq->k", error_KP, covariance_PP, error_KP).mean())
    assert harm[1] < harm[0] / 3
    assert np.abs(round_together(100 * weight_KP, covariance_PP, 64)).max() == 64


def test_no_sum_of_two_bytes_lies_at_the_edge_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = to_onnx(build_student("mobilenetv4_s", weights="none", size_px=32, dim=64).eval(), {})
    quantiser = Quantiser(model, SMALL, tmp_path, MINMAX)
    parted = quantiser.quantise("minmax")
    monkeypatch.setattr("edgeembed.export.int8.quantise.part_from_edges", lambda _: None)
    before = quantiser.quantise("minmax")
    distances = [edge_distances(one) for one in (before, parted)]
    assert len(distances[0]) == len(distances[1]) > 2
    assert min(distances[0]) < 1e-4
    assert min(distances[1]) > 0.4 / PARTS
    assert distance(parted, SMALL, embed(before, SMALL)) < 0.01
    steps = [
        {one.name: one for one in model.graph.initializer if one.name.endswith("_scale")} for model in (before, parted)
    ]
    for name, step in steps[0].items():
        wider = onnx.numpy_helper.to_array(steps[1][name]) / onnx.numpy_helper.to_array(step)
        assert 0.9999 < wider.min() <= wider.max() < 1.05, name


def edge_distances(model: onnx.ModelProto) -> list[float]:
    """Of each integer Add, how close any sum of two bytes lies to the edge of a step of the result, in steps."""
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        reads = [made_by.get(name) for name in node.input]
        if node.op_type != "Add" or not all(one and one.op_type == "DequantizeLinear" for one in reads):
            continue
        first, second = (
            (np.arange(256) - float(constants[one.input[2]])) * float(constants[one.input[1]]) for one in reads if one
        )
        (writes,) = (one for one in model.graph.node if node.output[0] in one.input)
        sums = (first[:, None] + second[None]) / float(constants[writes.input[1]])
        shown = np.abs(sums + float(constants[writes.input[2]]) - 127.5) < 128
        found.append(float(np.abs(sums - np.floor(sums) - 0.5)[shown].min()))
    return found


def test_only_an_image_that_is_cast_and_shifted_is_taken_as_bytes(convolutional: onnx.ModelProto) -> None:
    assert [node.op_type for node in stem_chain(convolutional.graph)] == ["Transpose", "Cast", "Sub", "Conv"]
    scaled = onnx.ModelProto()
    scaled.CopyFrom(convolutional)
    shift = next(node for node in scaled.graph.node if node.op_type == "Sub")
    shift.op_type = "Mul"
    assert stem_chain(scaled.graph) == []


@pytest.mark.parametrize("name", ["mobilenetv4_s", "repvit_m1"])
def test_a_vector_is_not_rounded_before_its_length_is_divided_out(name: str) -> None:
    model = to_onnx(build_student(name, weights="none", size_px=32, dim=64).eval(), {})
    quantised = to_int8(model, PIXELS[:, :32, :32].copy())
    made_by = {output: node.op_type for node in quantised.graph.node for output in node.output}
    norm = next(node for node in quantised.graph.node if node.op_type == "ReduceL2")
    assert made_by[norm.input[0]] == "Gemm"


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_every_calibration_gives_a_model_that_runs(convolutional: onnx.ModelProto, method: str) -> None:
    found = next(int8_attempts(convolutional, SMALL, SMALL, Int8Section(calibration=method)))  # type: ignore[arg-type]
    assert found.facts.calibration == method
    assert distance(found.model, SMALL, embed(convolutional, SMALL)) < 0.2
    assert {item.key: item.value for item in found.model.metadata_props} == {"space_id": "x"}


def test_the_calibration_that_moves_embeddings_least_is_chosen(convolutional: onnx.ModelProto, tmp_path: Path) -> None:
    found = next(int8_attempts(convolutional, SMALL, SMALL, Int8Section()))
    quantiser = Quantiser(convolutional, SMALL, tmp_path, Int8Section())
    expected = embed(convolutional, SMALL)
    harm = {name: distance(quantiser.quantise(name), SMALL, expected) for name in ("minmax", "percentile", "entropy")}
    assert found.facts.calibration == min(harm, key=lambda name: harm[name])


def test_ranges_do_not_depend_on_how_many_images_a_batch_holds(
    convolutional: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for batch in (3, 12):
        monkeypatch.setattr("edgeembed.export.int8.quantise.BATCH", batch)
        (folder := tmp_path / str(batch)).mkdir()
        found.append(Quantiser(convolutional, SMALL, folder, MINMAX).ranges("minmax").read_text())
    assert found[0] == found[1]


def test_operators_go_back_to_float_worst_first_until_no_more_may(convolutional: onnx.ModelProto) -> None:
    tried = list(int8_attempts(convolutional, SMALL, SMALL, MINMAX))
    counts = [len(one.facts.float_operators) for one in tried]
    assert counts == [0, *(2**power for power in range(len(counts) - 1))]
    assert len(counts) > 2
    for fewer, more in itertools.pairwise(tried[1:]):
        assert fewer.facts.float_operators == more.facts.float_operators[: len(fewer.facts.float_operators)]
    expected = embed(convolutional, SMALL)
    assert distance(tried[-1].model, SMALL, expected) < distance(tried[0].model, SMALL, expected)
    worst = tried[1].facts.float_operators[0]
    made_by = {name: node.op_type for node in tried[1].model.graph.node for name in node.output}
    (kept,) = (node for node in tried[1].model.graph.node if node.name == worst)
    if kept.op_type in ("Conv", "Gemm"):
        assert made_by.get(kept.input[1]) != "DequantizeLinear"


@pytest.mark.parametrize("name", ["resnet_xs", "test_vit"])
def test_by_default_no_pair_of_products_leaves_16_bits(name: str, tmp_path: Path) -> None:
    """Which is where x86 CPUs without VNNI add them: of the first convolution, depthwise ones and matrix products."""
    model = to_onnx(build_student(name, weights="none", size_px=32, dim=64).eval(), {})
    found = Quantiser(model, SMALL, tmp_path, MINMAX).attempt("minmax")
    peaks = [int(np.abs(weight.astype(np.int32)).max()) for weight in int8_weights(found.model)]
    assert len(peaks) > 3
    assert max(peaks) == 64
    assert 2 * 255 * max(peaks) < 2**15
    assert (found.facts.reduce_range, found.facts.cpus) == (True, "any")


def test_8_bit_weights_are_said_to_need_int8_dot_products(convolutional: onnx.ModelProto, tmp_path: Path) -> None:
    found = Quantiser(convolutional, SMALL, tmp_path, MINMAX, reduce_range=False).attempt("minmax")
    assert max(int(np.abs(weight.astype(np.int32)).max()) for weight in int8_weights(found.model)) == 127
    assert (found.facts.reduce_range, found.facts.cpus) == (False, "int8 dot products")


def test_7_bit_weights_are_tried_first_unless_the_recipe_says_otherwise() -> None:
    assert Int8Section().reduced_ranges() == (True, False)
    assert Int8Section(reduce_range=True).reduced_ranges() == (True,)
    assert Int8Section(reduce_range=False).reduced_ranges() == (False,)


def int8_weights(model: onnx.ModelProto) -> list[np.ndarray]:
    """Every int8 constant that a Conv, MatMul or Gemm multiplies by, the first convolution's included."""
    constants = {one.name: one for one in model.graph.initializer if one.data_type == TensorProto.INT8}
    made_by = {name: node for node in model.graph.node for name in node.output}
    reads = [
        made_by[node.input[1]].input[0]
        for node in model.graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in made_by
    ]
    return [onnx.numpy_helper.to_array(constants[name]) for name in reads if name in constants]
