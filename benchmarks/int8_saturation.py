"""Shows which integer operators saturate on this CPU, in ONNX Runtime and OpenVINO: one operator a graph, worst inputs.

Why: an export's 7-bit weights must be right on every CPU, whichever operator multiplies by them. All pixels are 255 and
all weights the largest, so that every pair of products is. The result is compared with exact integers.

    qemu-x86_64 -cpu Haswell python benchmarks/int8_saturation.py
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeembed.device.runtimes import ONNX_RUNTIMES, open_session

SIDE, CHANNELS, OUTPUTS = 32, 48, 32  # 32 x 32 x 3 bytes are 48 channels of 8 x 8
OPERATORS: Mapping[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "first convolution, 3 x 3 on the image": ("Conv", (OUTPUTS, 3, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "convolution, 1 x 1": ("Conv", (OUTPUTS, CHANNELS, 1, 1), {}),
    "convolution, 3 x 3": ("Conv", (OUTPUTS, CHANNELS, 3, 3), {"pads": [1, 1, 1, 1]}),
    "depthwise convolution, 3 x 3": ("Conv", (CHANNELS, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": CHANNELS}),
    "depthwise convolution, 5 x 5": ("Conv", (CHANNELS, 1, 5, 5), {"pads": [2, 2, 2, 2], "group": CHANNELS}),
    "grouped convolution, 3 x 3": ("Conv", (OUTPUTS, CHANNELS // 4, 3, 3), {"pads": [1, 1, 1, 1], "group": 4}),
    "Gemm": ("Gemm", (OUTPUTS, CHANNELS), {"transB": 1}),
    "MatMul": ("MatMul", (CHANNELS, OUTPUTS), {}),
}
BITS = {8: 127, 7: 64}


def main() -> None:
    print("| operator | weights | runtime | largest result / exact |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for (name, (kind, shape, attributes)), bits in itertools.product(OPERATORS.items(), BITS):
            path = Path(folder) / "operator.onnx"
            model, exact = operator(kind, shape, attributes, BITS[bits])
            onnx.save(model, path)
            for runtime in ONNX_RUNTIMES:
                session = open_session(path, runtime=runtime, threads=1)
                found_ND = session.run(np.full((1, SIDE, SIDE, 3), 255, np.uint8))
                print(f"| {name} | {bits} bits | {runtime} | {found_ND.max() / exact:.3f} |", flush=True)


def operator(
    kind: str, shape: tuple[int, ...], attributes: dict[str, Any], largest: int
) -> tuple[onnx.ModelProto, float]:
    """A graph from an image to the rounded result of one operator, and the largest value that is exact in it."""
    num_outputs = shape[1] if kind == "MatMul" else shape[0]
    products = shape[0] if kind == "MatMul" else int(np.prod(shape[1:]))
    exact = 255.0 * largest * products
    reads = (1, 3, SIDE, SIDE) if shape[1] == 3 else (1, CHANNELS, 8, 8) if kind == "Conv" else (64, CHANNELS)
    constants = {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "weight_rounded": np.full(shape, largest, np.int8),
        "weight_scale": np.ones(num_outputs, np.float32),
        "weight_zero": np.zeros(num_outputs, np.int8),
        "bias_rounded": np.zeros(num_outputs, np.int32),
        "bias_zero": np.zeros(num_outputs, np.int32),
        "result_scale": np.float32(exact / 255),
        "reads": np.array(reads, np.int64),
        "flat": np.array((1, -1), np.int64),
    }
    axis = 1 if kind == "MatMul" else 0
    products_of = ["values", "weight"] if kind == "MatMul" else ["values", "weight", "bias"]
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Reshape", ["planes", "reads"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "one", "zero"], ["shifted"]),
        helper.make_node("QuantizeLinear", ["shifted", "one", "zero"], ["again"]),
        helper.make_node("DequantizeLinear", ["again", "one", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["weight_rounded", "weight_scale", "weight_zero"], ["weight"], axis=axis),
        helper.make_node("DequantizeLinear", ["bias_rounded", "weight_scale", "bias_zero"], ["bias"], axis=0),
        helper.make_node(kind, products_of, ["result"], **attributes),
        helper.make_node("QuantizeLinear", ["result", "result_scale", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "result_scale", "zero"], ["read"]),
        helper.make_node("Reshape", ["read", "flat"], ["embedding"]),
    ]
    if kind == "MatMul":
        nodes = [node for node in nodes if node.output[0] != "bias"]
    graph = helper.make_graph(
        nodes,
        "operator",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", "D"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), exact


if __name__ == "__main__":
    main()
