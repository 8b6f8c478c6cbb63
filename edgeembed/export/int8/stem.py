"""The first convolution on bytes: an image is of int8's own type already, so that casting and shifting it is lost time.

The image is read through a range of step 1, and through the same range once more: ONNX Runtime multiplies integers with
either, OpenVINO 2026.4 only with both (a MobileNetV4-small at 144 px: .74 ms, with a float first convolution .84).

Neighbouring pixels are alike, so that rounding errors of the weights add up: each is made up for by the weights
rounded after it, as GPTQ does (Frantar et al., 2023), and what is left on average by the bias. On that network the harm
of rounding, mean 1 - cosine, falls from .00034 to .00009, of which .00008 is the border's.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import helper, numpy_helper

from edgeembed.arrays import Float64Array, UInt8Array

IMAGES = 64
DAMPING = 0.01  # of the mean variance of a pixel, added to that of each, so that a flat one divides by no zero
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


def round_stem(model: onnx.ModelProto, pixels_NHWC: UInt8Array, *, reduce_range: bool) -> None:
    """Has the first convolution multiply int8 weights by the image's own bytes, in place; see `stem_chain`.

    The zero point is the mean of the three means, and the bias takes what the channels' means differ from it: exact but
    for the padded border, which is one grey then instead of three. `pixels_NHWC` are images to round the weights for.
    """
    graph = model.graph
    transpose, cast, shift, convolution = stem_chain(graph)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weight_KCHW, *biases = (constants[name] for name in convolution.input[1:])
    mean_C = np.broadcast_to(constants[shift.input[1]].reshape(-1), 3)
    grey = round(float(mean_C.mean()))
    # CPUs without VNNI add two products in 16 bits, which hold 2 * 255 * 64.
    largest = 64 if reduce_range else 127
    scale_K = np.maximum(np.abs(weight_KCHW).max((1, 2, 3)) / largest, 1e-8).astype(np.float32)
    mean_P, covariance_PP = patch_moments(pixels_NHWC[:IMAGES], grey, weight_KCHW.shape[2:], convolution)
    weight_KP = weight_KCHW.reshape(len(scale_K), -1).astype(np.float64)
    rounded_KP = round_together(weight_KP / scale_K[:, None], covariance_PP, largest)
    left_K = (rounded_KP * scale_K[:, None] - weight_KP) @ mean_P
    bias_K = sum(biases) + (weight_KCHW.sum((2, 3)) * (grey - mean_C)).sum(1) - left_K
    made = {
        "stem_range": np.float32(1),
        "stem_grey": np.uint8(grey),
        "stem_weight_rounded": rounded_KP.reshape(weight_KCHW.shape).astype(np.int8),
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


def patch_moments(
    pixels_NHWC: UInt8Array, grey: int, sides: tuple[int, ...], convolution: onnx.NodeProto
) -> tuple[Float64Array, Float64Array]:
    """Mean (P) and covariance (P, P) of what one output of a convolution reads, channels first, less the grey."""
    given = {item.name: list(item.ints) for item in convolution.attribute}
    down, right = given.get("strides", [1, 1])
    top, left, *ends = given.get("pads", [0, 0, 0, 0])
    borders = ((top, ends[0]), (left, ends[1]), (0, 0))
    size = pixels_NHWC.shape[-1] * sides[0] * sides[1]
    sum_P, squares_PP, count = np.zeros(size), np.zeros((size, size)), 0
    for image_HWC in pixels_NHWC:
        patches = sliding_window_view(np.pad(image_HWC.astype(np.float64) - grey, borders), sides, axis=(0, 1))
        patch_NP = patches[::down, ::right].reshape(-1, size)
        sum_P += patch_NP.sum(0)
        squares_PP += patch_NP.T @ patch_NP
        count += len(patch_NP)
    mean_P = sum_P / count
    return mean_P, squares_PP / count - np.outer(mean_P, mean_P)


def round_together(weight_KP: Float64Array, covariance_PP: Float64Array, largest: int) -> Float64Array:
    """Whole numbers whose products with inputs of that covariance vary least from those of the weights."""
    size = len(covariance_PP)
    damping = DAMPING * max(float(np.trace(covariance_PP)) / size, 1e-8)
    upper_PP = np.linalg.cholesky(np.linalg.inv(covariance_PP + damping * np.eye(size))).T
    left_KP, rounded_KP = weight_KP.copy(), np.zeros_like(weight_KP)
    for i in range(size):
        rounded_KP[:, i] = np.clip(np.round(left_KP[:, i]), -largest, largest)
        error_K = (left_KP[:, i] - rounded_KP[:, i]) / upper_PP[i, i]
        left_KP[:, i + 1 :] -= np.outer(error_K, upper_PP[i, i + 1 :])
    return rounded_KP
