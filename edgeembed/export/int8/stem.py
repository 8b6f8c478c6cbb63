"""Quantises the first convolution, so that it multiplies int8 weights by the bytes of the image itself.

An image is uint8 already, so that casting it to float32 and quantising it again would be lost time. The image gets a
DequantizeLinear, a QuantizeLinear and a DequantizeLinear of scale 1. ONNX Runtime computes in integers with the first
of them alone, OpenVINO 2026.4 only with all three (a MobileNetV4-small at 144 px: .74 ms, with a float first
convolution .84).

Neighbouring pixels are alike, so that the rounding errors of the weights add up. Each error is made up for by the
weights rounded after it, as in GPTQ (Frantar et al., 2023), and the mean of what remains by the bias. On that network
the damage of quantising this layer, mean 1 - cosine, falls from .00034 to .00009, of which .00008 comes from the padded
border.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view

from edgeembed.arrays import Float64Array, UInt8Array
from edgeembed.export.graph import Graph, attributes_of, new_node

NUM_IMAGES = 64
DAMPING = 0.01
"""Share of the mean variance of a pixel that is added to each variance, as in GPTQ, so that none is zero."""
STEM_OP_TYPES = ("Transpose", "Cast", "Sub", "Conv")


def stem_chain(graph: Graph) -> list[onnx.NodeProto]:
    """Returns the nodes from the image to the first convolution: Transpose, Cast, Sub, Conv.

    Empty where the graph begins in another way.
    """
    chain: list[onnx.NodeProto] = []
    tensor = graph.image
    for op_type in STEM_OP_TYPES:
        # A ViT also reads the size of the batch from the image, which changes nothing here.
        consumers = [node for node in graph.consumers(tensor) if node.op_type != "Shape"]
        if [node.op_type for node in consumers] != [op_type]:
            return []
        if any(name not in graph.constants for name in consumers[0].input[1:]):
            return []
        chain += consumers
        tensor = consumers[0].output[0]
    return chain


def quantise_stem(model: onnx.ModelProto, pixels_NHWC: UInt8Array, *, reduce_range: bool) -> None:
    """Quantises the convolution at the end of `stem_chain` in place, with weights rounded for these images.

    The zero point of the image is the mean of the three channel means, and the bias takes the difference of each
    channel from it. That is exact except for the padded border, which is then one grey instead of three.
    """
    graph = Graph(model)
    transpose, cast, shift, convolution = stem_chain(graph)
    weight_KCHW, *biases = (graph.array(name) for name in convolution.input[1:])
    mean_C = np.broadcast_to(graph.array(shift.input[1]).reshape(-1), 3)
    zero_point = round(float(mean_C.mean()))
    # CPUs without VNNI add two products in 16 bits, which hold 2 * 255 * 64.
    max_weight = 64 if reduce_range else 127
    scale_K = np.maximum(np.abs(weight_KCHW).max((1, 2, 3)) / max_weight, 1e-8).astype(np.float32)
    mean_P, covariance_PP = patch_moments(pixels_NHWC[:NUM_IMAGES], zero_point, weight_KCHW.shape[2:], convolution)
    weight_KP = weight_KCHW.reshape(len(scale_K), -1).astype(np.float64)
    rounded_KP = round_with_feedback(weight_KP / scale_K[:, None], covariance_PP, max_weight)
    mean_error_K = (rounded_KP * scale_K[:, None] - weight_KP) @ mean_P
    bias_K = sum(biases) + (weight_KCHW.sum((2, 3)) * (zero_point - mean_C)).sum(1) - mean_error_K
    # The names are part of exported files.
    constants = {
        "stem_range": np.float32(1),
        "stem_grey": np.uint8(zero_point),
        "stem_weight_rounded": rounded_KP.reshape(weight_KCHW.shape).astype(np.int8),
        "stem_bias_rounded": np.round(bias_K / scale_K).astype(np.int32),
        "stem_scale": scale_K,
        "stem_weight_zero": np.zeros(len(scale_K), np.int8),
        "stem_bias_zero": np.zeros(len(scale_K), np.int32),
    }
    image = ("stem_range", "stem_grey")
    inputs = [
        dequantise(transpose.output[0], *image, to="stem_shifted"),
        new_node("QuantizeLinear", ["stem_shifted", *image], "stem_bytes"),
        dequantise("stem_bytes", *image, to="stem_image"),
        dequantise("stem_weight_rounded", "stem_scale", "stem_weight_zero", to="stem_weight", axis=0),
        dequantise("stem_bias_rounded", "stem_scale", "stem_bias_zero", to="stem_bias", axis=0),
    ]
    convolution.input[:] = ["stem_image", "stem_weight", "stem_bias"]
    graph.replace({cast.output[0]: [], shift.output[0]: [], convolution.output[0]: [*inputs, convolution]})
    for name, value in constants.items():
        graph.add_constant(name, value)
    graph.remove_unused_constants()


def dequantise(stored: str, scale: str, zero_point: str, *, to: str, axis: int = 1) -> onnx.NodeProto:
    return new_node("DequantizeLinear", [stored, scale, zero_point], to, axis=axis)


def patch_moments(
    pixels_NHWC: UInt8Array, zero_point: int, kernel: tuple[int, ...], convolution: onnx.NodeProto
) -> tuple[Float64Array, Float64Array]:
    """Mean (P,) and covariance (P, P) of the input patch of one output of a convolution, less the zero point.

    `kernel`: its height and width. A patch lists channels first, as the weights do.
    """
    attributes = attributes_of(convolution)
    down, right = attributes.get("strides", [1, 1])
    top, left, *ends = attributes.get("pads", [0, 0, 0, 0])
    borders = ((top, ends[0]), (left, ends[1]), (0, 0))
    size = pixels_NHWC.shape[-1] * kernel[0] * kernel[1]
    sum_P, squares_PP, count = np.zeros(size), np.zeros((size, size)), 0
    for image_HWC in pixels_NHWC:
        # (rows, columns, 3, kernel height, kernel width): each patch in the order of the weights.
        patches = sliding_window_view(np.pad(image_HWC.astype(np.float64) - zero_point, borders), kernel, axis=(0, 1))
        patch_NP = patches[::down, ::right].reshape(-1, size)
        sum_P += patch_NP.sum(0)
        squares_PP += patch_NP.T @ patch_NP
        count += len(patch_NP)
    mean_P = sum_P / count
    return mean_P, squares_PP / count - np.outer(mean_P, mean_P)


def round_with_feedback(weight_KP: Float64Array, covariance_PP: Float64Array, max_weight: int) -> Float64Array:
    """Rounds weights to whole numbers so that products with inputs of that covariance change least (GPTQ)."""
    size = len(covariance_PP)
    damping = DAMPING * max(float(np.trace(covariance_PP)) / size, 1e-8)
    # Row i of this factor says how much each later weight has to move for an error of weight i.
    upper_PP = np.linalg.cholesky(np.linalg.inv(covariance_PP + damping * np.eye(size))).T
    remaining_KP, rounded_KP = weight_KP.copy(), np.zeros_like(weight_KP)
    for i in range(size):
        rounded_KP[:, i] = np.clip(np.round(remaining_KP[:, i]), -max_weight, max_weight)
        # The weights that are not yet rounded take over the error, by how much their inputs vary with this one.
        error_K = (remaining_KP[:, i] - rounded_KP[:, i]) / upper_PP[i, i]
        remaining_KP[:, i + 1 :] -= np.outer(error_K, upper_PP[i, i + 1 :])
    return rounded_KP
