"""Converts a torch network to a self-contained ONNX graph: uint8 images in, unit-length embeddings out.

The normalisation of the input and the L2 norm of the output are inside the graph.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxsim
import torch
from onnx import shape_inference
from torch import Tensor, nn

from edgeembed.errors import CheckFailed
from edgeembed.export.graph import Graph, attributes_of
from edgeembed.network.model import Network
from edgeembed.student.zoo import fuse

# From opset 23 on the graph has `Attention`, which not every runtime takes.
OPSET = 20
# The limit is 2 GiB; the graph around the weights needs room too.
MAX_PROTOBUF_BYTES = 2_000_000_000
TRACE_BATCH = 2  # a batch of 1 would be baked in


class DeviceGraph(nn.Module):
    """The network with the input that a device has: (N, H, W, 3) uint8 RGB to (N, D) float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        # Channels-last strides would follow the image through the trace and turn a flatten into eight operators.
        embedding: Tensor = self.model(image.permute(0, 3, 1, 2).contiguous())
        return embedding


def to_onnx(model: Network, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Traces, simplifies and annotates a network in eval mode.

    A network above 2 GB, the limit of a protobuf message, such as ViT-H-14, is not simplified, and `save_onnx` writes
    its weights to a second file.
    """
    pixels = torch.zeros((TRACE_BATCH, model.size_px, model.size_px, 3), dtype=torch.uint8)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            DeviceGraph(fuse(model).float().cpu()).eval(),
            (pixels,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["embedding"],
            dynamic_shapes={"image": {0: torch.export.Dim("N", min=1)}},
            verbose=False,
        )
    assert program is not None
    traced = program.model_proto
    # onnxsim passes the model through one protobuf message, which a large one does not fit.
    if not is_large(traced):
        traced, same = onnxsim.simplify(traced)
        if not same:
            raise CheckFailed("onnxsim changed what the graph computes: a bug of the exporter, please report it")
        use_global_average_pool(traced)
    fold_std_into_convolution(traced)
    return annotate(traced, metadata)


def is_large(model: onnx.ModelProto) -> bool:
    """Whether the weights of a model do not fit into one protobuf message."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > MAX_PROTOBUF_BYTES


def fold_std_into_convolution(model: onnx.ModelProto) -> None:
    """Moves the division of the image by the standard deviation into the weights of the first convolution, in place.

    Exact with zero padding, since 0 / std = 0. The subtraction of the mean stays: folding it would change the border.
    """
    graph = Graph(model)
    for division in graph.nodes:
        if division.op_type != "Div" or division.input[1] not in graph.constants:
            continue
        std = graph.array(division.input[1])
        consumers = graph.consumers(division.output[0])
        if std.shape[-3:] != (3, 1, 1) or [node.op_type for node in consumers] != ["Conv"]:
            continue
        (convolution,) = consumers
        weight = convolution.input[1]
        if weight not in graph.constants:
            continue
        graph.set_constant(weight, (graph.array(weight) / std.reshape(1, 3, 1, 1)).astype(np.float32))
        convolution.input[0] = division.input[0]
        graph.replace({division.output[0]: []})
        graph.remove_unused_constants()
        return


def use_global_average_pool(model: onnx.ModelProto) -> None:
    """Turns each mean over rows and columns, which the tracer writes as a ReduceMean, into a GlobalAveragePool.

    The numbers are the same, but for a ReduceMean ONNX Runtime leaves its blocked layout of convolutions and comes
    back.
    """
    graph = Graph(model)
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in shape_inference.infer_shapes(model).graph.value_info
    }
    for node in graph.nodes:
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in graph.constants:
            continue
        # Negative axes count from the end of N, C, H, W.
        axes = sorted(axis % 4 for axis in graph.array(node.input[1]).tolist())
        if axes == [2, 3] and attributes_of(node).get("keepdims", 1) == 1 and ranks.get(node.input[0]) == 4:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]
    graph.remove_unused_constants()


def annotate(model: onnx.ModelProto, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Sets the metadata, names the batch dimension N, removes what the tracer noted and infers all shapes again."""
    graph = model.graph
    del graph.value_info[:]  # inferred again below, with the batch named N
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    del graph.metadata_props[:]
    del model.metadata_props[:]
    graph.name, model.producer_name, model.producer_version = "edgeembed", "edgeembed", ""
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    if is_large(model):
        return model  # shape inference and the checker need one message; ONNX Runtime checks the graph as it loads
    inferred = shape_inference.infer_shapes(model)
    onnx.checker.check_model(inferred, full_check=True)
    return inferred


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Writes one self-contained file; above 2 GB the graph and, beside it, `NAME.data` with the weights."""
    if is_large(model):
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
        onnx.load_external_data_for_model(model, str(path.parent))  # saving removed the weights from it
        return
    path.write_bytes(model.SerializeToString(deterministic=True))
