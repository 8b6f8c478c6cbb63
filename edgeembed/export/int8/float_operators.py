"""int8: what stays in float is read so that ONNX Runtime leaves it there."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def hold_in_float(model: onnx.ModelProto) -> None:
    """Products by float weights read rounded values through a range for each channel, all of them alike, in place.

    From a range for the whole, ONNX Runtime rounds such weights by itself when it loads a file, with one range for all
    of them (WeightBiasQuantization, seen in 1.31): a MobileNetV4-small with its depthwise convolutions in float loses
    .224 (mean 1 - cosine) that way, .0006 as it is told to, and .0006 in int8 throughout.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: (position, node) for position, node in enumerate(graph.node) for output in node.output}
    made: list[tuple[int, onnx.NodeProto]] = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm") or node.input[1] not in tensors:
            continue
        position, read = makers.get(node.input[0], (0, None))
        if read is None or read.op_type != "DequantizeLinear" or tensors[read.input[1]].dims:
            continue
        scale, point = (numpy_helper.to_array(tensors[name]) for name in read.input[1:3])
        names = [f"{node.name}_reads_{part}" for part in ("scales", "points")]
        for name, value in zip(names, (scale, point), strict=True):
            graph.initializer.append(numpy_helper.from_array(np.full(num_channels(node, tensors), value), name))
        own = f"{node.name}_reads"
        made.append((position, helper.make_node("DequantizeLinear", [read.input[0], *names], [own], name=own, axis=1)))
        node.input[0] = own
    for position, node in reversed(made):
        graph.node.insert(position + 1, node)


def num_channels(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> int:
    """That a product reads."""
    said = {item.name: item.i for item in node.attribute}
    dims = tensors[node.input[1]].dims
    if node.op_type == "Conv":
        return int(dims[1]) * int(said.get("group", 1))
    return int(dims[1 if said.get("transB", 0) else 0])
