"""Scales of residual sums with which every processor rounds to the same integers.

A quantised Add computes the 65,536 sums of two bytes in float32, in an order of operations that differs between
processors. A sum that lies halfway between two integers of the output is then rounded up on one and down on another,
for every pixel in which the same two bytes meet, and the results drift apart: cosine p1 .9988 of a MobileNetV4-small in
ONNX Runtime on x86 against a browser. Here scales are changed by little, so that no sum lies halfway.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from edgeembed.export.graph import Graph

DENOMINATOR = 1023
"""The scales of both summands become whole multiples of 1/DENOMINATOR of the output's scale. It is odd, so that every
sum is at least half a multiple away from halfway, and large, so that scales change by little.
"""


def avoid_rounding_ties(model: onnx.ModelProto) -> None:
    """Widens the scales of residual sums and of their summands until no sum of two bytes is a tie; in place.

    A tensor whose scale was fixed for one sum keeps it in the next, as along a residual stream; a sum of two such
    tensors is left as it is.
    """
    graph = Graph(model)
    fixed: set[str] = set()
    for node in graph.nodes:
        # A sum that is quantised once and read by nothing else, of two tensors that are quantised themselves.
        consumers = [consumer for consumer in graph.consumers(node.output[0]) if node.op_type == "Add"]
        if [consumer.op_type for consumer in consumers] != ["QuantizeLinear"]:
            continue
        summands = [graph.producer(name) for name in node.input]
        if not all(item and item.op_type == "DequantizeLinear" and graph.producer(item.input[0]) for item in summands):
            continue
        scales = sorted((item.input[1] for item in summands if item), key=lambda name: name not in fixed)
        kept, other, total = *scales, consumers[0].input[1]
        if other in fixed or len({kept, other, total}) < 3:
            continue
        # Rounding down here and up below widens scales only, so that no value is cut off.
        multiple = max(1, math.floor(DENOMINATOR * scale_of(graph, kept) / scale_of(graph, total)))
        set_scale(graph, total, scale_of(graph, kept) * DENOMINATOR / multiple)
        multiple = math.ceil(DENOMINATOR * scale_of(graph, other) / scale_of(graph, total))
        set_scale(graph, other, scale_of(graph, total) * multiple / DENOMINATOR)
        fixed |= {kept, other, total}


def scale_of(graph: Graph, name: str) -> float:
    return float(graph.array(name))


def set_scale(graph: Graph, name: str, scale: float) -> None:
    """Gives a tensor another scale, and follows with the integer biases of the layers that read the tensor.

    The scale of a bias is the product of the scales of the layer's input and weights.
    """
    ratio = scale / scale_of(graph, name)
    # Biases are int32 with a scale of their own, which must stay the product of the two others.
    dequantized = [
        node.output[0] for node in graph.consumers(name) if node.op_type == "DequantizeLinear" and node.input[1] == name
    ]
    layers = [node for tensor in dequantized for node in graph.consumers(tensor)]
    biases = {node.input[2] for node in layers if len(node.input) == 3 and node.input[0] in dequantized}
    for bias in biases:
        dequantize = graph.producer(bias)
        if dequantize is not None and dequantize.op_type == "DequantizeLinear":
            stored, bias_scale = dequantize.input[:2]
            value, scales = graph.array(stored), graph.array(bias_scale)
            graph.set_constant(stored, np.round(value / ratio).astype(value.dtype))
            graph.set_constant(bias_scale, (scales * ratio).astype(scales.dtype))
    graph.set_constant(name, np.asarray(scale, np.float32))
