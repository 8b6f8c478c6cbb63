"""The first convolution on bytes: an image is of int8's own type already, so that casting and shifting it is lost time.

The image is read through a range of step 1, and through the same range once more: ONNX Runtime multiplies integers with
either, OpenVINO 2026.4 only with both (a MobileNetV4-small at 144 px: .74 ms, with a float first convolution .84).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

CHAIN = ("Transpose", "Cast", "Sub", "Conv")


def stem_chain(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes from the image to the first convolution, which is the last: layout, type and mean, nothing else.

    Empty where the graph begins otherwise.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    chain: list[onnx.NodeProto] = []
    value = graph.input[0].name
    for kind in CHAIN:
        readers = [node for node in graph.node if value in node.input and node.op_type != "Shape"]
        if [node.op_type for node in readers] != [kind] or any(name not in constants for name in readers[0].input[1:]):
            return []
        chain += readers
        value = readers[0].output[0]
    return chain


def round_stem(model: onnx.ModelProto, *, reduce_range: bool) -> None:
    """Has the first convolution multiply int8 weights by the image's own bytes, in place; see `stem_chain`.

    The zero point is the mean of the three means, and the bias takes what the channels' means differ from it: exact but
    for the padded border, which is one grey then instead of three.
    """
    graph = model.graph
    transpose, cast, shift, convolution = stem_chain(graph)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weight_KCHW, *biases = (constants[name] for name in convolution.input[1:])
    mean_C = np.broadcast_to(constants[shift.input[1]].reshape(-1), 3)
    grey = round(float(mean_C.mean()))
    # 255 * 64 twice is what the products of CPUs without VNNI hold.
    scale_K = np.maximum(np.abs(weight_KCHW).max((1, 2, 3)) / (64 if reduce_range else 127), 1e-8).astype(np.float32)
    weight_scale_KCHW = scale_K[:, None, None, None]
    bias_K = sum(biases) + (weight_KCHW.sum((2, 3)) * (grey - mean_C)).sum(1)
    made = {
        "stem_range": np.float32(1),
        "stem_grey": np.uint8(grey),
        "stem_weight_rounded": np.round(weight_KCHW / weight_scale_KCHW).astype(np.int8),
        "stem_bias_rounded": np.round(bias_K / scale_K).astype(np.int32),
        "stem_scale": scale_K,
        "stem_weight_zero": np.zeros(len(scale_K), np.int8),
        "stem_bias_zero": np.zeros(len(scale_K), np.int32),
    }
    image = ("stem_range", "stem_grey")
    read = [
        dequantise(transpose.output[0], *image, to="stem_shifted"),
        helper.make_node("QuantizeLinear", ["stem_shifted", *image], ["stem_bytes"], name="stem_bytes"),
        dequantise("stem_bytes", *image, to="stem_image"),
        dequantise("stem_weight_rounded", "stem_scale", "stem_weight_zero", to="stem_weight", axis=0),
        dequantise("stem_bias_rounded", "stem_scale", "stem_bias_zero", to="stem_bias", axis=0),
    ]
    at = list(graph.node).index(convolution)
    for position, node in enumerate(read):
        graph.node.insert(at + position, node)
    convolution.input[:] = ["stem_image", "stem_weight", "stem_bias"]
    for node in (cast, shift):
        graph.node.remove(node)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in made.items())
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def dequantise(stored: str, scale: str, zero: str, *, to: str, axis: int = 1) -> onnx.NodeProto:
    return helper.make_node("DequantizeLinear", [stored, scale, zero], [to], name=to, axis=axis)
