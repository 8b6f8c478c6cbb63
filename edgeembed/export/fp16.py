"""fp16, decided in the ONNX file, so that every runtime reads the same numbers."""

from __future__ import annotations

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from edgeembed.export.onnx import is_large

KEEP_FLOAT_IN_FP16 = ("LayerNormalization", "Softmax", "ReduceL2", "ReduceSumSquare", "Pow", "Sqrt")


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """float16 weights and arithmetic; input, output, norms and softmax stay in float32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    unit_norm = [node.name for node in model.graph.node[-6:]]
    head = [node.name for node in model.graph.node if node.op_type in ("Cast", "Sub") and not node.name.startswith("q")]
    converted: onnx.ModelProto = convert_float_to_float16(
        copy,
        keep_io_types=True,
        disable_shape_infer=is_large(model),
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
