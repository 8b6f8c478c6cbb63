"""An exported ONNX file as TensorRT's parser takes it: the same numbers, said in the operators that each version knows.

TensorRT reads uint8 only to cast it, and quantises about zero only, with weights that are written in float.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeembed.export.tensorrt.opset17 import (
    OPSET,
    replace_nodes,
    say_in_opset_17,
    write_out_gelu,
    write_out_layer_norm,
)

Version = tuple[int, int]
OLDEST: Version = (8, 5)
NEWEST_OPSET: Mapping[int, int] = {8: 17, 9: 19, 10: 20, 11: 20}
"""By TensorRT's major version, the opset that its parser is known to read; a newer major reads at least the last."""
TAKEN_SINCE: Mapping[str, Version] = {
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
"""The first TensorRT whose ONNX parser takes an operator; what is not here, none is known to take."""
TYPES = {"FLOAT", "FLOAT16", "INT8", "INT32", "INT64", "BOOL"}
"""Of initialisers; uint8 is taken as the network's input alone."""


def parse_version(version: str) -> Version:
    """10.13.3.9 is (10, 13)."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


def for_tensorrt(model: onnx.ModelProto, version: Version) -> onnx.ModelProto:
    """A copy of an exported file that the parser of a version takes, or of which `refusals` says why it does not."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    cast_bytes(copy.graph)
    cast_first(copy.graph)
    quantise_about_zero(copy.graph)
    if version < TAKEN_SINCE["LayerNormalization"]:
        write_out_layer_norm(copy.graph)
    if version < TAKEN_SINCE["Gelu"]:
        write_out_gelu(copy.graph)
    if newest_opset(version) <= OPSET:
        say_in_opset_17(copy)
    used = {node.domain for node in copy.graph.node}
    kept = [item for item in copy.opset_import if item.domain in used]
    del copy.opset_import[:]
    copy.opset_import.extend(kept)
    del copy.graph.value_info[:]  # of the graph as it was
    return copy


def newest_opset(version: Version) -> int:
    return NEWEST_OPSET.get(version[0], max(NEWEST_OPSET.values()) if version[0] > max(NEWEST_OPSET) else 0)


def refusals(model: onnx.ModelProto, version: Version) -> list[str]:
    """Why the parser of a TensorRT version would not take a graph; empty where it would."""
    name = f"TensorRT {version[0]}.{version[1]}"
    found = [f"{name} is older than {OLDEST[0]}.{OLDEST[1]}"] if version < OLDEST else []
    for op in sorted({node.op_type for node in model.graph.node if not node.domain}):
        since = TAKEN_SINCE.get(op)
        if since is None:
            found.append(f"operator {op}: no TensorRT is known to take it")
        elif since > version:
            found.append(f"operator {op}: taken since TensorRT {since[0]}.{since[1]}, not by {version[0]}.{version[1]}")
    for domain in sorted({node.domain for node in model.graph.node if node.domain}):
        found.append(f"operators of {domain}: {name} takes those of ONNX alone")
    for tensor in model.graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        if kind not in TYPES:
            found.append(f"{tensor.name}: {name} takes no constants of type {kind}")
    readers = [node for node in model.graph.node if model.graph.input[0].name in node.input]
    if any(node.op_type != "Cast" for node in readers):
        found.append(f"input {model.graph.input[0].name}: {name} takes uint8 only into a Cast")
    opset = next((item.version for item in model.opset_import if not item.domain), 0)
    if opset > newest_opset(version):
        found.append(f"opset {opset}: {name} is known to read at most {newest_opset(version)}")
    return found


def cast_bytes(graph: onnx.GraphProto) -> None:
    """Pixels that are dequantised, as the int8 files read them, are cast and shifted instead."""
    image = graph.input[0].name
    pixels = {image, *(node.output[0] for node in graph.node if node.op_type == "Transpose" and image in node.input)}
    read = next((node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in pixels), None)
    if read is None:
        return
    stored, scale, point = read.input
    cast, zero, shifted, output = (f"{read.output[0]}_{part}" for part in ("cast", "zero", "shifted", "scaled"))
    grey = next(numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == point)
    graph.initializer.append(numpy_helper.from_array(grey.astype(np.float32), zero))
    made = [
        helper.make_node("Cast", [stored], [cast], name=cast, to=onnx.TensorProto.FLOAT),
        helper.make_node("Sub", [cast, zero], [shifted], name=shifted),
        helper.make_node("Mul", [shifted, scale], [read.output[0]], name=output),
    ]
    nodes = list(graph.node)
    at = nodes.index(read)
    replace_nodes(graph, [*nodes[:at], *made, *nodes[at + 1 :]])


def cast_first(graph: onnx.GraphProto) -> None:
    """The pixels are cast before anything else: Transpose, then Cast becomes Cast, then Transpose, and what else reads
    the pixels (their number, say) reads what they were cast to.
    """
    image = graph.input[0].name
    transpose = next((node for node in graph.node if image in node.input and node.op_type == "Transpose"), None)
    if transpose is None:
        return
    readers = [node for node in graph.node if transpose.output[0] in node.input]
    if [node.op_type for node in readers] != ["Cast"]:
        return
    cast = readers[0]
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == image:
                node.input[position] = transpose.output[0]
    # The two swap their outputs' names, so that nothing behind them changes.
    cast.output[0], transpose.output[0] = transpose.output[0], cast.output[0]
    cast.input[0] = image
    first = onnx.NodeProto()
    first.CopyFrom(cast)
    graph.node.remove(cast)
    graph.node.insert(0, first)


def quantise_about_zero(graph: onnx.GraphProto) -> None:
    """Ranges with a zero point become symmetric ones that hold them; weights become float, rounded on the way in.

    Where the zero point was the least value, rounding also cut off what is negative: a Relu says so instead. A
    quantised bias becomes float.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    zero = numpy_helper.from_array(np.zeros((), np.int8), "zero_point_int8")
    nodes: list[onnx.NodeProto] = []
    symmetric: dict[tuple[str, str], str] = {}  # (scale, zero point) to the name of the new scale
    renamed: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            nodes += dequantised(graph, node, constants, renamed)
            continue
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            point = constants[node.input[2]]
            if point.data_type == onnx.TensorProto.UINT8:
                # Of all channels, where they are listed: see `hold_in_float`.
                scale = numpy_helper.to_array(constants[node.input[1]]).flat[0]
                lowest = int(numpy_helper.to_array(point).flat[0])
                key = (node.input[1], node.input[2])
                if key not in symmetric:
                    symmetric[key] = f"{node.input[1]}_symmetric"
                    widest = np.float32(max(lowest, 255 - lowest)) * scale / np.float32(127)
                    graph.initializer.append(numpy_helper.from_array(np.asarray(widest, scale.dtype), symmetric[key]))
                if node.op_type == "QuantizeLinear" and lowest == 0:
                    rectified = f"{node.input[0]}_rectified_{len(nodes)}"
                    nodes.append(helper.make_node("Relu", [node.input[0]], [rectified], name=rectified))
                    node.input[0] = rectified
                node.input[1], node.input[2] = symmetric[key], zero.name
        nodes.append(node)
    for node in nodes:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
    graph.initializer.append(zero)
    replace_nodes(graph, nodes)
    used = {name for node in graph.node for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def dequantised(
    graph: onnx.GraphProto, node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], renamed: dict[str, str]
) -> list[onnx.NodeProto]:
    """A stored weight, in float, with the two operators that round it; a bias and other constants in float alone."""
    stored, scale = (numpy_helper.to_array(constants[name]) for name in node.input[:2])
    axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
    if stored.dtype != np.int8 or not stored.ndim:
        name = f"{node.output[0]}_float"
        point = numpy_helper.to_array(constants[node.input[2]]).astype(np.int64) if len(node.input) > 2 else 0
        graph.initializer.append(numpy_helper.from_array(((stored - point) * scale).astype(np.float32), name))
        renamed[node.output[0]] = name
        return []
    # TensorRT takes one scale for each row of a matrix that multiplies from the right, not for each column.
    turned = stored.ndim == 2 and axis == 1 and scale.ndim == 1
    if turned:
        stored, axis = np.ascontiguousarray(stored.T), 0
    weight, points = f"{node.output[0]}_float", f"{node.output[0]}_points"
    along = scale.reshape([-1 if side == axis else 1 for side in range(stored.ndim)]) if scale.ndim else scale
    graph.initializer.append(numpy_helper.from_array((stored * along).astype(np.float32), weight))
    graph.initializer.append(numpy_helper.from_array(np.zeros(scale.shape, np.int8), points))
    rounded, output = f"{node.output[0]}_int8", node.output[0]
    result = f"{output}_rows" if turned else output
    made = [
        helper.make_node("QuantizeLinear", [weight, node.input[1], points], [rounded], name=rounded, axis=axis),
        helper.make_node("DequantizeLinear", [rounded, node.input[1], points], [result], name=result, axis=axis),
    ]
    if turned:
        made.append(helper.make_node("Transpose", [result], [output], name=output, perm=[1, 0]))
    return made
