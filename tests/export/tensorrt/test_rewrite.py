"""Exported files are rewritten with the operators, types and opset that the parser of each TensorRT takes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeembed.device.bundle import read_bundle
from edgeembed.device.embedder import default_bundle
from edgeembed.errors import CheckFailed
from edgeembed.export.tensorrt.rewrite import parse_version, rewrite_for_tensorrt, unsupported_features

VERSIONS = [(8, 5), (8, 6), (10, 3), (11, 4)]


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, feed)[0]
    return output


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, *default_input_shape(), 3), dtype=np.uint8)


def default_input_shape() -> tuple[int, int]:
    spec = read_bundle(default_bundle()).input
    return spec.height, spec.width


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("int8", 0.98)])
def test_the_bundled_files_are_supported_and_embed_as_before(
    pixels: np.ndarray, version: tuple[int, int], precision: str, least: float
) -> None:
    model = onnx.load(default_bundle() / f"model.{precision}.onnx")
    graph = rewrite_for_tensorrt(model, version)
    onnx.checker.check_model(graph, full_check=True)
    assert unsupported_features(graph, version) == []
    before, after = (run(item, {"image": pixels}) for item in (model, graph))
    assert np.einsum("nd,nd->n", before, after).min() > least


def test_int8_becomes_symmetric_and_a_relu_cuts_off_what_the_zero_point_did() -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["x", "mean"], ["y"], name="sub"),
        helper.make_node("QuantizeLinear", ["y", "scale", "point"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "point"], ["embedding"], name="dq"),
    ]
    model = model_of(nodes, {"mean": np.float32(100), "scale": np.float32(0.5), "point": np.uint8(0)})
    pixels = np.array([[[[0, 100, 150]]]], np.uint8)
    graph = rewrite_for_tensorrt(model, (10, 3))
    types = {tensor.data_type for tensor in graph.graph.initializer}
    assert TensorProto.UINT8 not in types
    np.testing.assert_allclose(run(graph, {"image": pixels}).ravel(), [0, 0, 50], atol=0.5)


@pytest.mark.parametrize("stored", [np.uint8(131), np.array([[[[120, 128, 140]]]], np.uint8)])
def test_quantised_constants_that_are_no_weights_become_float(stored: np.ndarray) -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("DequantizeLinear", ["stored", "scale", "point"], ["constant"], name="dq"),
        helper.make_node("Add", ["x", "constant"], ["embedding"], name="add"),
    ]
    model = model_of(nodes, {"stored": stored, "scale": np.float32(0.5), "point": np.uint8(128)})
    pixels = np.arange(6, dtype=np.uint8).reshape(1, 1, 2, 3)
    graph = rewrite_for_tensorrt(model, (11, 4))
    assert unsupported_features(graph, (11, 4)) == []
    np.testing.assert_array_equal(run(graph, {"image": pixels}), run(model, {"image": pixels}))


def test_equal_scales_per_channel_of_an_input_become_one_scale() -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", ["x", "scale", "point"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "scales", "points"], ["embedding"], name="dq", axis=3),
    ]
    constants = {"scale": np.float32(2), "point": np.uint8(0)}
    listed = {"scales": np.full(3, 2, np.float32), "points": np.zeros(3, np.uint8)}
    graph = rewrite_for_tensorrt(model_of(nodes, {**constants, **listed}), (11, 4))
    assert all(not tensor.dims for tensor in graph.graph.initializer)
    pixels = np.arange(60, 66, dtype=np.uint8).reshape(1, 1, 2, 3)
    np.testing.assert_allclose(run(graph, {"image": pixels}), pixels, atol=2.1)


def test_for_8_partial_shapes_become_slices_and_axes_attributes() -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Shape", ["x"], ["n"], name="shape", start=0, end=1),
        helper.make_node("Expand", ["one", "n"], ["ones"], name="expand"),
        helper.make_node("ReduceL2", ["x", "axes"], ["length"], name="norm", keepdims=1),
        helper.make_node("Add", ["length", "one"], ["embedding"], name="add"),
    ]
    model = model_of(nodes, {"one": np.ones(1, np.float32), "axes": np.array([3], np.int64)})
    graph = rewrite_for_tensorrt(model, (8, 6))
    assert [item.version for item in graph.opset_import] == [17]
    assert all(not node.attribute for node in graph.graph.node if node.op_type == "Shape")
    pixels = np.full((2, 1, 1, 3), 3, np.uint8)
    np.testing.assert_allclose(run(model, {"image": pixels}), run(graph, {"image": pixels}))


def test_gelu_is_decomposed_for_8_and_kept_for_10() -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "scale"], ["y"], name="mul"),
        helper.make_node("Gelu", ["y"], ["embedding"], name="gelu"),
    ]
    model = model_of(nodes, {"scale": np.float32(0.01)})
    pixels = np.arange(30, dtype=np.uint8).reshape(2, 5, 1, 3)
    old, new = rewrite_for_tensorrt(model, (8, 6)), rewrite_for_tensorrt(model, (10, 3))
    assert "Gelu" not in {node.op_type for node in old.graph.node}
    assert "Gelu" in {node.op_type for node in new.graph.node}
    np.testing.assert_allclose(run(old, {"image": pixels}), run(model, {"image": pixels}), atol=1e-6)


@pytest.mark.parametrize(
    ("op", "version", "reason"),
    [
        ("GroupNormalization", (8, 5), "operator GroupNormalization: taken since TensorRT 8.6, not by 8.5"),
        ("Det", (11, 4), "operator Det: no TensorRT is known to take it"),
        ("Relu", (7, 2), "TensorRT 7.2 is older than 8.5"),
    ],
)
def test_an_unsupported_operator_is_named_with_the_reason(op: str, version: tuple[int, int], reason: str) -> None:
    cast = helper.make_node("Cast", ["image"], ["x"], name="cast", to=TensorProto.FLOAT)
    node = helper.make_node(op, ["x"], ["embedding"], name="op")
    assert reason in unsupported_features(model_of([cast, node], {}), version)


def test_uint8_consumers_other_than_a_cast_and_newer_opsets_are_unsupported() -> None:
    model = model_of([helper.make_node("Identity", ["image"], ["embedding"], name="same")], {}, opset=21)
    found = "; ".join(unsupported_features(model, (10, 3)))
    assert "takes uint8 only into a Cast" in found
    assert "opset 21" in found


def test_for_8_splits_and_resizes_are_those_of_opset_17() -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Split", ["x"], ["a", "b"], name="split", axis=-1, num_outputs=2),
        helper.make_node(
            "Resize", ["b", "", "scales"], ["c"], name="resize", mode="nearest", keep_aspect_ratio_policy="stretch"
        ),
        helper.make_node("Add", ["c", "c"], ["embedding"], name="add"),
    ]
    model = model_of(nodes, {"scales": np.array([1, 2, 2, 1], np.float32)})
    graph = rewrite_for_tensorrt(model, (8, 5))
    assert [item.version for item in graph.opset_import] == [17]
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(run(graph, {"image": pixels}), run(model, {"image": pixels}))
    nodes[2].attribute.append(helper.make_attribute("antialias", 1))
    with pytest.raises(CheckFailed, match="antialias"):
        rewrite_for_tensorrt(model_of(nodes, {"scales": np.array([1, 2, 2, 1], np.float32)}), (8, 5))


def test_a_split_of_unknown_size_cannot_be_written_for_8() -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Split", ["x"], ["embedding", "rest"], name="split", axis=2, num_outputs=2),
    ]
    with pytest.raises(CheckFailed, match="cannot be written in opset 17"):
        rewrite_for_tensorrt(model_of(nodes, {}), (8, 6))


@pytest.mark.parametrize(("text", "version"), [("10.13.3.9", (10, 13)), ("8.6.0", (8, 6)), ("11.4.0.106", (11, 4))])
def test_versions_are_read(text: str, version: tuple[int, int]) -> None:
    assert parse_version(text) == version


def model_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], opset: int = 20) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", None, None, 3])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", None, None, None])
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "test", [image], [embedding], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize("version", [(8, 5), (8, 6)])
def test_layer_norms_and_batch_shapes_of_a_transformer_are_supported_by_8(version: tuple[int, int]) -> None:
    nodes = [
        helper.make_node("Transpose", ["image"], ["t"], name="t", perm=[0, 3, 1, 2]),
        helper.make_node("Shape", ["image"], ["n"], name="shape", start=0, end=1),
        helper.make_node("Cast", ["t"], ["x"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["embedding"], name="norm"),
        helper.make_node("Expand", ["one", "n"], ["ones"], name="expand"),
    ]
    model = model_of(
        nodes, {"scale": np.arange(4, dtype=np.float32), "bias": np.ones(4, np.float32), "one": np.ones(1, np.float32)}
    )
    graph = rewrite_for_tensorrt(model, version)
    assert unsupported_features(graph, version) == []
    assert ("LayerNormalization" in {node.op_type for node in graph.graph.node}) is (version == (8, 6))
    assert [node.op_type for node in graph.graph.node if "image" in node.input] == ["Cast"]
    pixels = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    np.testing.assert_allclose(run(graph, {"image": pixels}), run(model, {"image": pixels}), atol=1e-5)
