"""Residual sums that every processor rounds alike.

The 65,536 sums of two bytes are computed in float32, in an order that is each processor's own: one that falls on the
edge between two steps of the result is rounded up here and down there, wherever the same two bytes meet, and what
follows drifts apart (a MobileNetV4-small in ONNX Runtime on x86 and in a browser: cosine p1 .9988).
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

PARTS = 1023
"""Both summands have steps of a whole number of such parts of the result's: the number is odd, so that no sum comes
closer to an edge than half a part, and large, so that steps grow by little."""


def part_from_edges(model: onnx.ModelProto) -> None:
    """Widens the steps of what is summed, and of sums, until no sum of two bytes lies on an edge; in place.

    A tensor that was settled for one sum keeps its step in the next, as a residual stream does; a sum of two such is
    left as it is.
    """
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    settled: set[str] = set()
    for node in graph.node:
        readers = [reader for reader in graph.node if node.op_type == "Add" and node.output[0] in reader.input]
        if [reader.op_type for reader in readers] != ["QuantizeLinear"]:
            continue
        summands = [makers.get(name) for name in node.input]
        if not all(one and one.op_type == "DequantizeLinear" and one.input[0] in makers for one in summands):
            continue
        names = sorted((one.input[1] for one in summands if one), key=lambda name: name not in settled)
        kept, other, total = *names, readers[0].input[1]
        if other in settled or len({kept, other, total}) < 3:
            continue
        parts = max(1, math.floor(PARTS * step_of(graph, kept) / step_of(graph, total)))
        set_step(graph, total, step_of(graph, kept) * PARTS / parts)
        parts = math.ceil(PARTS * step_of(graph, other) / step_of(graph, total))
        set_step(graph, other, step_of(graph, total) * parts / PARTS)
        settled |= {kept, other, total}


def constant(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(tensor for tensor in graph.initializer if tensor.name == name)
    return found


def step_of(graph: onnx.GraphProto, name: str) -> float:
    return float(numpy_helper.to_array(constant(graph, name)))


def set_step(graph: onnx.GraphProto, name: str, step: float) -> None:
    """Gives a tensor another step, and the integer biases that are added to products with it."""
    ratio = step / step_of(graph, name)
    read = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[1] == name}
    biases = {node.input[2] for node in graph.node if len(node.input) == 3 and node.input[0] in read}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0] in biases:
            rounded, scale = (constant(graph, part) for part in node.input[:2])
            bias, steps = numpy_helper.to_array(rounded), numpy_helper.to_array(scale)
            rounded.CopyFrom(numpy_helper.from_array(np.round(bias / ratio).astype(bias.dtype), rounded.name))
            scale.CopyFrom(numpy_helper.from_array((steps * ratio).astype(steps.dtype), scale.name))
    constant(graph, name).CopyFrom(numpy_helper.from_array(np.asarray(step, np.float32), name))
