"""Lower precisions, decided in the ONNX file, so that every runtime reads the same numbers.

int8: QDQ with static ranges from real images. In convolutional networks everything that has an integer kernel is
quantised, but for linear attention between convolutions; in transformers only products with a weight matrix are, while
residual sums, norms, softmax, GELU and the attention products stay in float (ViT-B, all int8: 85.2 -> 5.0 top-1; weight
products only: 84.5).
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from edgeembed.errors import unknown_choice
from edgeembed.images import UInt8Array

PRECISIONS = ("fp32", "fp16", "int8")
CALIBRATION_BATCH = 16
KEEP_FLOAT_IN_FP16 = ("LayerNormalization", "Softmax", "ReduceL2", "ReduceSumSquare", "Pow", "Sqrt")


def parse_precisions(text: str) -> list[str]:
    """A comma-separated list; fp32 comes first whether named or not, as the others are made from it."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in PRECISIONS:
            raise unknown_choice("precision", name, PRECISIONS)
    return [name for name in PRECISIONS if name in names or name == "fp32"]


class PixelReader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds calibration pixels to ONNX Runtime, a batch at a time."""

    def __init__(self, pixels_NHWC: UInt8Array) -> None:
        self.batches: Iterator[UInt8Array] = iter(
            pixels_NHWC[i : i + CALIBRATION_BATCH] for i in range(0, len(pixels_NHWC), CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, UInt8Array] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def to_int8(model: onnx.ModelProto, pixels_NHWC: UInt8Array) -> onnx.ModelProto:
    """Static QDQ, weights int8 per channel, activations uint8, ranges from `pixels_NHWC` (min and max)."""
    with tempfile.TemporaryDirectory() as name, _quiet():
        folder = Path(name)
        onnx.save(model, folder / "float.onnx")
        quant_pre_process(str(folder / "float.onnx"), str(folder / "ready.onnx"), skip_symbolic_shape=True)
        ready = onnx.load(folder / "ready.onnx")
        settings = transformer_settings(ready) if is_transformer(ready) else convolution_settings(ready)
        quantize_static(
            str(folder / "ready.onnx"),
            str(folder / "int8.onnx"),
            PixelReader(pixels_NHWC),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=CalibrationMethod.MinMax,
            **settings,
        )
        quantised = onnx.load(folder / "int8.onnx")
    del quantised.metadata_props[:]
    onnx.helper.set_model_props(quantised, {item.key: item.value for item in model.metadata_props})
    return quantised


def is_transformer(model: onnx.ModelProto) -> bool:
    return any(node.op_type in ("Softmax", "Attention") for node in model.graph.node)


def weight_products(model: onnx.ModelProto) -> list[str]:
    """Names of MatMul and Gemm nodes that multiply by a constant matrix."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants]


def transformer_settings(model: onnx.ModelProto) -> dict[str, Any]:
    return {
        "op_types_to_quantize": ["MatMul", "Gemm"],
        "nodes_to_quantize": weight_products(model),
        "extra_options": {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
    }


def convolution_settings(model: onnx.ModelProto) -> dict[str, Any]:
    """The first convolution stays in float: with it, the layout change of the uint8 input would follow the
    quantised normalisation and cost more than int8 saves there. The tail, which makes unit vectors, does too, and so
    does what it divides, the neck's product: rounded with one range for all images, a vector that is short before the
    norm has few of 256 levels (cosine p1 of a MobileNetV4-small: .86 when rounded, .999 so).
    """
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    tail = [node.name for node in model.graph.node if node.op_type in ("ReduceL2", "Div", "Clip", "Sub", "Cast")]
    return {
        "nodes_to_exclude": convolutions[:1] + tail + attention_nodes(model),
        "extra_options": {"OpTypesToExcludeOutputQuantization": ["Gemm"]},
    }


def attention_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the products of two activations and of all that lies between them and the nearest layers with weights or
    residual sums (EfficientViT-B0, mAP: .656 in float, .208 with these nodes in int8, .663 without).
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: set[str] = set()
    ahead = [node for node in model.graph.node if node.op_type == "MatMul" and not weights & set(node.input)]
    while ahead:
        node = ahead.pop()
        residual_sum = node.op_type == "Add" and not weights & set(node.input)
        if node.name in found or residual_sum or node.op_type in ("Conv", "Gemm"):
            continue
        found.add(node.name)
        ahead += [makers[name] for name in node.input if name in makers]
        ahead += [reader for name in node.output for reader in readers.get(name, [])]
    return sorted(found)


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """float16 weights and arithmetic; input, output, norms and softmax stay in float32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    unit_norm = [node.name for node in model.graph.node[-6:]]
    head = [node.name for node in model.graph.node if node.op_type in ("Cast", "Sub") and not node.name.startswith("q")]
    converted: onnx.ModelProto = convert_float_to_float16(
        copy,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *KEEP_FLOAT_IN_FP16],
        node_block_list=[*unit_norm, *head],
    )
    nodes = converted.graph.node
    outputs = [node.output[0] for node in nodes]
    for position in reversed(range(len(nodes))):  # the converter adds a cast once for each reader of a value
        if outputs[position] in outputs[:position]:
            del nodes[position]
    OnnxModel.graph_topological_sort(converted.graph)  # and puts its casts last
    return converted


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser writes advice to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def sample_evenly(count: int, wanted: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """`wanted` positions spread over 0..count-1."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))
