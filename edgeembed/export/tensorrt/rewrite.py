"""Rewrites an exported ONNX file so that TensorRT's parser takes it, for each version from 8.5 on.

TensorRT takes uint8 only as the input of a Cast, and quantises only with a zero point of 0 and weights that the file
holds as float32. Its older versions also lack operators and opsets (see `opset17`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from edgeembed.export.graph import Graph, attributes_of, copy_model, new_node
from edgeembed.export.tensorrt.opset17 import OPSET, decompose_gelu, decompose_layer_norm, downgrade_to_opset_17

Version = tuple[int, int]
OLDEST: Version = (8, 5)
NEWEST_OPSET: Mapping[int, int] = {8: 17, 9: 19, 10: 20, 11: 20}
"""The newest opset that the parser of a TensorRT major version is known to read; newer ones read at least the last."""
SUPPORTED_SINCE: Mapping[str, Version] = {
    **dict.fromkeys(
        (
            "Abs", "Add", "And", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Constant",
            "ConstantOfShape", "Conv", "Cos", "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Einsum", "Elu",
            "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "Gemm",
            "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity",
            "InstanceNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max",
            "MaxPool", "Min", "Mul", "Neg", "Not", "Or", "Pad", "Pow", "PRelu", "QuantizeLinear", "Range",
            "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
            "ReduceSumSquare", "Relu", "Reshape", "Resize", "Shape", "Sigmoid", "Sin", "Slice", "Softmax", "Softplus",
            "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Unsqueeze",
            "Where",
        ),
        OLDEST,
    ),
    "LayerNormalization": (8, 6),
    "GroupNormalization": (8, 6),
    "Gelu": (10, 0),
}  # fmt: skip
"""The first TensorRT whose ONNX parser takes an operator; an operator that is missing here is in no parser we know."""
CONSTANT_TYPES = {"FLOAT", "FLOAT16", "INT8", "INT32", "INT64", "BOOL"}
"""Types that a constant may have; uint8 is allowed for the network's input only."""


def parse_version(version: str) -> Version:
    """Returns the first two numbers: 10.13.3.9 is (10, 13)."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


def rewrite_for_tensorrt(model: onnx.ModelProto, version: Version) -> onnx.ModelProto:
    """Returns a copy of an exported file for the parser of a version, as far as it can be rewritten.

    `unsupported_features` says what the parser would still refuse.
    """
    copy = copy_model(model)
    graph = Graph(copy)
    # Pixels first: their DequantizeLinear would otherwise be taken for that of an activation.
    cast_dequantized_pixels(graph)
    move_cast_first(graph)
    make_quantisation_symmetric(graph)
    if version < SUPPORTED_SINCE["LayerNormalization"]:
        decompose_layer_norm(graph)
    if version < SUPPORTED_SINCE["Gelu"]:
        decompose_gelu(graph)
    if newest_opset(version) <= OPSET:
        downgrade_to_opset_17(copy)
    used_domains = {node.domain for node in copy.graph.node}
    kept = [item for item in copy.opset_import if item.domain in used_domains]
    del copy.opset_import[:]
    copy.opset_import.extend(kept)
    del copy.graph.value_info[:]  # shapes of the graph before it was rewritten
    return copy


def newest_opset(version: Version) -> int:
    """Returns the newest opset that the parser of a version is known to read; 0 for versions before 8."""
    return NEWEST_OPSET.get(version[0], max(NEWEST_OPSET.values()) if version[0] > max(NEWEST_OPSET) else 0)


def unsupported_features(model: onnx.ModelProto, version: Version) -> list[str]:
    """Returns the reasons why the parser of a TensorRT version would refuse a graph; empty where it takes it."""
    name = f"TensorRT {version[0]}.{version[1]}"
    graph = Graph(model)
    reasons = [f"{name} is older than {OLDEST[0]}.{OLDEST[1]}"] if version < OLDEST else []
    for op_type in sorted({node.op_type for node in graph.nodes if not node.domain}):
        since = SUPPORTED_SINCE.get(op_type)
        if since is None:
            reasons.append(f"operator {op_type}: no TensorRT is known to take it")
        elif since > version:
            first, this = (".".join(map(str, item)) for item in (since, version))
            reasons.append(f"operator {op_type}: taken since TensorRT {first}, not by {this}")
    for domain in sorted({node.domain for node in graph.nodes if node.domain}):
        reasons.append(f"operators of {domain}: {name} takes those of ONNX only")
    for tensor in graph.constants.values():
        type_name = onnx.TensorProto.DataType.Name(tensor.data_type)
        if type_name not in CONSTANT_TYPES:
            reasons.append(f"{tensor.name}: {name} takes no constants of type {type_name}")
    if any(node.op_type != "Cast" for node in graph.consumers(graph.image)):
        reasons.append(f"input {graph.image}: {name} takes uint8 only into a Cast")
    opset = next((item.version for item in model.opset_import if not item.domain), 0)
    if opset > newest_opset(version):
        reasons.append(f"opset {opset}: {name} is known to read at most {newest_opset(version)}")
    return reasons


def cast_dequantized_pixels(graph: Graph) -> None:
    """Replaces the DequantizeLinear that int8 files read the pixels with by a Cast, a Sub and a Mul."""
    image = graph.image
    pixels = [image, *(node.output[0] for node in graph.consumers(image) if node.op_type == "Transpose")]
    dequantize = next(
        (node for node in graph.nodes if node.op_type == "DequantizeLinear" and node.input[0] in pixels), None
    )
    if dequantize is None:
        return
    stored, scale, zero_point = dequantize.input
    output = dequantize.output[0]
    # (pixel - zero point) * scale: TensorRT takes uint8 pixels into a Cast only.
    zero = graph.add_constant(f"{output}_zero", graph.array(zero_point).astype(np.float32))
    cast, shifted = f"{output}_cast", f"{output}_shifted"
    scaled = new_node("Mul", [shifted, scale], output)
    scaled.name = f"{output}_scaled"
    graph.replace(
        {
            output: [
                new_node("Cast", [stored], cast, to=onnx.TensorProto.FLOAT),
                new_node("Sub", [cast, zero], shifted),
                scaled,
            ]
        }
    )


def move_cast_first(graph: Graph) -> None:
    """Moves the Cast of the pixels in front of their Transpose, and lets all other consumers read the cast pixels.

    One of those is the Shape that gives the size of the batch.
    """
    image = graph.image
    transpose = next((node for node in graph.consumers(image) if node.op_type == "Transpose"), None)
    if transpose is None or [node.op_type for node in graph.consumers(transpose.output[0])] != ["Cast"]:
        return
    (cast,) = graph.consumers(transpose.output[0])
    rename_inputs(graph.consumers(image), {image: transpose.output[0]})
    # The two swap the names of their outputs, so that nothing behind them changes.
    cast.output[0], transpose.output[0] = transpose.output[0], cast.output[0]
    cast.input[0] = image
    graph.set_nodes([cast, *(node for node in graph.nodes if node.output[0] != cast.output[0])])


def rename_inputs(nodes: Sequence[onnx.NodeProto], names: Mapping[str, str]) -> None:
    for node in nodes:
        for position, name in enumerate(node.input):
            node.input[position] = names.get(name, name)


def make_quantisation_symmetric(graph: Graph) -> None:
    """Gives activations a zero point of 0 and a scale that holds their range, and stores weights as float32.

    Where the zero point was the smallest value, quantising also cut off negative values: a Relu now does that. Biases
    and other stored constants become float.
    """
    zero = "zero_point_int8"
    nodes: list[onnx.NodeProto] = []
    float_constants: dict[str, str] = {}  # output of a removed DequantizeLinear to the constant in its place
    for node in graph.nodes:
        if node.op_type == "DequantizeLinear" and node.input[0] in graph.constants:
            nodes += dequantize_constant(graph, node, float_constants)
            continue
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and is_uint8(graph, node.input[2]):
            # uint8 with a zero point of 0 held no negative value; int8 does.
            if node.op_type == "QuantizeLinear" and graph.array(node.input[2]).flat[0] == 0:
                # Numbered, because several nodes may quantise one tensor.
                rectified = f"{node.input[0]}_rectified_{len(nodes)}"
                nodes.append(new_node("Relu", [node.input[0]], rectified))
                node.input[0] = rectified
            node.input[1], node.input[2] = symmetric_scale(graph, node), zero
        nodes.append(node)
    rename_inputs(nodes, float_constants)
    graph.add_constant(zero, np.zeros((), np.int8))
    graph.set_nodes(nodes)
    graph.remove_unused_constants()


def is_uint8(graph: Graph, constant: str) -> bool:
    return bool(graph.constants[constant].data_type == onnx.TensorProto.UINT8)


def symmetric_scale(graph: Graph, node: onnx.NodeProto) -> str:
    """The name of the scale with which int8 holds the range that a node's scale and zero point give to uint8."""
    name = f"{node.input[1]}_symmetric"
    if name not in graph.constants:
        # Where a scale is listed for each channel, all are equal: see `int8.float_weights`.
        scale, zero_point = graph.array(node.input[1]).flat[0], int(graph.array(node.input[2]).flat[0])
        # The longer side of the uint8 range decides, so that int8 cuts nothing off.
        largest = np.float32(max(zero_point, 255 - zero_point)) * scale / np.float32(127)
        graph.add_constant(name, np.asarray(largest, scale.dtype))
    return name


def dequantize_constant(graph: Graph, node: onnx.NodeProto, float_constants: dict[str, str]) -> list[onnx.NodeProto]:
    """Returns the nodes that replace the DequantizeLinear of a constant, and adds the constant to the graph as float32.

    A weight keeps its rounding, by a QuantizeLinear and a DequantizeLinear. A bias or another constant needs no node:
    it is entered in `float_constants`.
    """
    output = node.output[0]
    stored, scale = (graph.array(name) for name in node.input[:2])
    axis = attributes_of(node).get("axis", 1)
    if stored.dtype != np.int8 or not stored.ndim:
        zero_point = graph.array(node.input[2]).astype(np.int64) if len(node.input) > 2 else 0
        value = ((stored - zero_point) * scale).astype(np.float32)
        float_constants[output] = graph.add_constant(f"{output}_float", value)
        return []
    # For a matrix that multiplies from the right, TensorRT takes one scale for each row, not for each column.
    is_transposed = stored.ndim == 2 and axis == 1 and scale.ndim == 1
    if is_transposed:
        stored, axis = np.ascontiguousarray(stored.T), 0
    along_axis = scale.reshape([-1 if side == axis else 1 for side in range(stored.ndim)]) if scale.ndim else scale
    weight = graph.add_constant(f"{output}_float", (stored * along_axis).astype(np.float32))
    zero_points = graph.add_constant(f"{output}_points", np.zeros(scale.shape, np.int8))
    quantized, result = f"{output}_int8", f"{output}_rows" if is_transposed else output
    nodes = [
        new_node("QuantizeLinear", [weight, node.input[1], zero_points], quantized, axis=axis),
        new_node("DequantizeLinear", [quantized, node.input[1], zero_points], result, axis=axis),
    ]
    if is_transposed:
        nodes.append(new_node("Transpose", [result], output, perm=[1, 0]))
    return nodes
