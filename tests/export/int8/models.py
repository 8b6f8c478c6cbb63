"""Students that are not trained, random images, and the int8 weights of a model, for the tests of the export."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from edgeembed.export.graph import Graph
from edgeembed.export.int8.quantise import int8_candidates
from edgeembed.export.onnx import to_onnx
from edgeembed.export.recipe import Int8Section
from edgeembed.student.zoo import build_student

PIXELS_64 = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
PIXELS_32 = np.ascontiguousarray(PIXELS_64[:, :32, :32])
MINMAX = Int8Section(calibration="minmax")


def exported_student(name: str, size_px: int = 32) -> onnx.ModelProto:
    return to_onnx(build_student(name, weights="none", size_px=size_px, dim=64).eval(), {"space_id": "x"})


def to_int8(model: onnx.ModelProto, pixels_NHWC: np.ndarray) -> onnx.ModelProto:
    """The first candidate, with all operators quantised that can be."""
    return next(int8_candidates(model, pixels_NHWC, pixels_NHWC, MINMAX)).model


def int8_weights(model: onnx.ModelProto) -> list[np.ndarray]:
    """Every int8 constant that a Conv, MatMul or Gemm multiplies by, the first convolution's included."""
    graph = Graph(model)
    found = []
    for node in graph.nodes:
        dequantize = graph.producer(node.input[1]) if node.op_type in ("Conv", "MatMul", "Gemm") else None
        stored = dequantize and graph.constants.get(dequantize.input[0])
        if stored is not None and stored.data_type == TensorProto.INT8:
            found.append(onnx.numpy_helper.to_array(stored))
    return found


def is_produced_by(graph: Graph, tensor: str, op_type: str) -> bool:
    node = graph.producer(tensor)
    return node is not None and node.op_type == op_type
