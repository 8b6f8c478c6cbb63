"""Weights that were left in float32 are not quantised by ONNX Runtime when it loads a file."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from edgeembed.export.graph import Graph
from edgeembed.export.int8.quantise import Quantiser, embed, mean_cosine_distance
from tests.export.int8.models import MINMAX, PIXELS_32, exported_student


@pytest.mark.parametrize("name", ["resnet_xs", "fastvit_t8"])
def test_what_stays_in_float_is_not_quantised_by_the_runtime(name: str, tmp_path: Path) -> None:
    """Four convolutions at the start here, and in FastViT also the depthwise ones that multiply channels."""
    model = exported_student(name)
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    quantised = Quantiser(model, PIXELS_32, tmp_path, MINMAX).quantise("minmax", keep_float=convolutions[2:6])
    assert mean_cosine_distance(quantised, PIXELS_32, embed(model, PIXELS_32)) < 0.01
    in_int8 = num_int8_convolutions(quantised)
    assert in_int8 <= len(convolutions) - 4
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(quantised.SerializeToString(), options, providers=["CPUExecutionProvider"])
    loaded = [node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node]
    # The runtime leaves the first one in float32, because its output is not quantised before a Gelu.
    assert in_int8 - 1 <= loaded.count("QLinearConv") <= in_int8
    assert loaded.count("QLinearConv") + loaded.count("Conv") + loaded.count("FusedConv") == len(convolutions)


def num_int8_convolutions(model: onnx.ModelProto) -> int:
    graph = Graph(model)
    weights = [graph.producer(node.input[1]) for node in graph.nodes if node.op_type == "Conv"]
    stored = [graph.constants[dequantize.input[0]] for dequantize in weights if dequantize is not None]
    return sum(tensor.data_type == TensorProto.INT8 for tensor in stored)
