"""Torch to one self-contained ONNX graph: uint8 photographs in, unit vectors out, constants and norm inside."""

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
from onnx import numpy_helper, shape_inference
from torch import Tensor, nn

from edgeembed.errors import CheckFailed
from edgeembed.network.model import Network
from edgeembed.student.zoo import fuse

OPSET = 20
MAX_PROTOBUF_BYTES = 2_000_000_000
TRACE_BATCH = 2  # a batch of 1 would be baked in


class DeviceGraph(nn.Module):
    """What a device runs: (N, H, W, 3) uint8 RGB to (N, D) float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        # Channels-last strides would follow the image through the trace and turn a flatten into eight operators.
        embedding: Tensor = self.model(image.permute(0, 3, 1, 2).contiguous())
        return embedding


def to_onnx(model: Network, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Traces, simplifies and annotates a network in eval mode.

    One above 2 GB, the limit of a protobuf message (ViT-H-14), is not simplified; `save` puts its weights beside it.
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
    if not is_large(traced):
        traced, same = onnxsim.simplify(traced)
        if not same:
            raise CheckFailed("onnxsim changed what the graph computes: a fault of the exporter, please report it")
        name_pooling(traced)
    fold_scale(traced)
    return annotate(traced, metadata)


def is_large(model: onnx.ModelProto) -> bool:
    """Whether its weights do not fit into one protobuf message."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > MAX_PROTOBUF_BYTES


def fold_scale(model: onnx.ModelProto) -> None:
    """Moves the division by the standard deviation into the first convolution's weights.

    Exact with zero padding, since 0 / std = 0; the subtraction of the mean stays, as folding it would not be.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for division in graph.node:
        if division.op_type != "Div" or division.input[1] not in constants:
            continue
        std = numpy_helper.to_array(constants[division.input[1]])
        users = [node for node in graph.node if division.output[0] in node.input]
        if std.shape[-3:] != (3, 1, 1) or len(users) != 1 or users[0].op_type != "Conv":
            continue
        weight = constants.get(users[0].input[1])
        if weight is None:
            continue
        folded = numpy_helper.to_array(weight) / std.reshape(1, 3, 1, 1)
        weight.CopyFrom(numpy_helper.from_array(folded.astype(np.float32), weight.name))
        users[0].input[0] = division.input[0]
        graph.node.remove(division)
        if not any(division.input[1] in node.input for node in graph.node):
            graph.initializer.remove(constants[division.input[1]])
        return


def name_pooling(model: onnx.ModelProto) -> None:
    """Says GlobalAveragePool where the tracer wrote a mean over rows and columns.

    The same numbers, but ONNX Runtime leaves its blocked layout of convolutions for a ReduceMean, and comes back.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in shape_inference.infer_shapes(model).graph.value_info
    }
    for node in model.graph.node:
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in constants:
            continue
        axes = sorted(axis % 4 for axis in numpy_helper.to_array(constants[node.input[1]]).tolist())
        keeps = all(item.i == 1 for item in node.attribute if item.name == "keepdims")
        if axes == [2, 3] and keeps and ranks.get(node.input[0]) == 4:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]
    unused = [tensor for name, tensor in constants.items() if not any(name in node.input for node in model.graph.node)]
    for tensor in unused:
        model.graph.initializer.remove(tensor)


def annotate(model: onnx.ModelProto, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Sets the metadata, names the batch N, drops the tracer's traces and infers every shape afresh."""
    graph = model.graph
    del graph.value_info[:]
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
        return model  # neither passes through one message; ONNX Runtime checks it as it loads
    inferred = shape_inference.infer_shapes(model)
    onnx.checker.check_model(inferred, full_check=True)
    return inferred


def save(model: onnx.ModelProto, path: Path) -> None:
    """Writes one self-contained file, or, above 2 GB, the graph and beside it `NAME.data` with the weights."""
    if is_large(model):
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
        onnx.load_external_data_for_model(model, str(path.parent))  # saving emptied it
        return
    path.write_bytes(model.SerializeToString(deterministic=True))
