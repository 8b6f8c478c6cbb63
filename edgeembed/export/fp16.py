"""Converts an ONNX model to float16, so that every runtime computes with the same types."""

from __future__ import annotations

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from edgeembed.export.graph import copy_model
from edgeembed.export.onnx import is_large

FLOAT32_OP_TYPES = ("LayerNormalization", "Softmax", "ReduceL2", "ReduceSumSquare", "Pow", "Sqrt")
"""Operators whose sums or powers overflow in float16 or lose their small terms."""
UNIT_NORM_NODES = 6
"""The last nodes of every exported graph, which divide the embedding by its length."""


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy with float16 weights and arithmetic; input, output, norms and softmax stay in float32."""
    unit_norm = [node.name for node in model.graph.node[-UNIT_NORM_NODES:]]
    # Pixels up to 255 less the mean: the input is cast and shifted in float32.
    shift = [
        node.name for node in model.graph.node if node.op_type in ("Cast", "Sub") and not node.name.startswith("q")
    ]
    converted: onnx.ModelProto = convert_float_to_float16(
        copy_model(model),
        keep_io_types=True,
        disable_shape_infer=is_large(model),
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *FLOAT32_OP_TYPES],
        node_block_list=[*unit_norm, *shift],
    )
    nodes = converted.graph.node
    outputs = [node.output[0] for node in nodes]
    # The converter adds the same cast again for each consumer of a tensor: keep the first.
    for position in reversed(range(len(nodes))):
        if outputs[position] in outputs[:position]:
            del nodes[position]
    OnnxModel.graph_topological_sort(converted.graph)  # the converter appends its casts at the end
    return converted
