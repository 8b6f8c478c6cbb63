"""Chooses the operators of a graph that are quantised to int8, and those that stay in float32.

Everything that ONNX Runtime has an integer kernel for is quantised, except for attention, norms over channels and the
operators next to them, where only products with a weight matrix are. In a ViT that leaves nothing but those products
and the first convolution: residual sums, norms, softmax, GELU and the products of attention stay in float32 (ViT-B, all
int8: 85.2 -> 5.0 top-1; products with weights only: 84.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from edgeembed.export.graph import Graph, attributes_of
from edgeembed.export.int8.stem import stem_chain

ATTENTION_AND_NORMS = ("MatMul", "Softmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization")
# The unit norm at the end, and the normalisation of pixels at the start.
UNIT_NORM_AND_INPUT = ("ReduceL2", "Div", "Clip", "Sub", "Cast")
FLOAT_OUTPUTS = ("Gemm", "MatMul")
"""Their output is not quantised: norms, softmax and sums in float32 follow, or the unit norm."""


@dataclass(frozen=True, kw_only=True)
class QuantisedOperators:
    """The operators of a graph to quantise.

    `nodes`: their names, `stem` among them, the convolution that reads the image, where the graph begins with one.
    `op_types`: the types that ONNX Runtime's quantiser takes; `float_outputs`: those whose output it leaves in float32.
    """

    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    float_outputs: tuple[str, ...]
    stem: str | None = None


def choose_operators(model: onnx.ModelProto) -> QuantisedOperators:
    """Chooses all operators with an integer kernel, except for those that lose too much or gain nothing.

    The unit norm at the end stays in float32, and so does its input, the output of the neck: quantised with one scale
    for all images, a vector that is short before the norm has few of the 256 levels (cosine p1 of a MobileNetV4-small:
    .86 quantised, .999 in float32). The first convolution is quantised by `stem.quantise_stem`, not by ONNX Runtime.
    """
    graph = Graph(model)
    stem = next((node.name for node in stem_chain(graph)[-1:]), None)
    first_convolution = next((node.name for node in graph.nodes if node.op_type == "Conv"), None)
    # The first convolution reads pixels: either `quantise_stem` takes it, or it stays in float32.
    excluded = {
        first_convolution,
        *(node.name for node in graph.nodes if node.op_type in UNIT_NORM_AND_INPUT),
        *multiplied_depthwise(graph),
        # Products with weights are quantised even inside attention: see the module's docstring.
        *(attention_and_norms(graph) - set(weight_products(graph))),
    }
    op_types = tuple(sorted(set(QLinearOpsRegistry) | set(QDQRegistry)))  # the default of ONNX Runtime's quantiser
    nodes = [node.name for node in graph.nodes if node.op_type in op_types and node.name not in excluded]
    return QuantisedOperators(
        nodes=(*([stem] if stem else []), *nodes), op_types=op_types, float_outputs=FLOAT_OUTPUTS, stem=stem
    )


def weight_products(graph: Graph) -> list[str]:
    """Names of the MatMul and Gemm nodes that multiply by a constant matrix."""
    return [
        node.name for node in graph.nodes if node.op_type in ("MatMul", "Gemm") and node.input[1] in graph.constants
    ]


def multiplied_depthwise(graph: Graph) -> list[str]:
    """Names of the depthwise convolutions with several output channels for each input channel.

    ONNX Runtime has no int8 kernel for them: three took 5.4 ms of FastViT-T8's 9.7 in int8, and .55 in float32 (AMD
    EPYC, one thread).
    """
    found = []
    for node in graph.nodes:
        if node.op_type != "Conv" or node.input[1] not in graph.constants:
            continue
        num_outputs, inputs_per_group = graph.constants[node.input[1]].dims[:2]
        if inputs_per_group == 1 < attributes_of(node).get("group", 1) < num_outputs:
            found.append(node.name)
    return found


def attention_and_norms(graph: Graph) -> set[str]:
    """Names of the nodes that belong to attention and to norms over channels.

    From each matrix product, softmax and norm the search goes along producers and consumers up to the nearest
    convolution, neck or residual sum. A residual sum belongs to them where one of its summands was computed by them.
    EfficientViT-B0, mAP: .656 in float32, .208 with these nodes in int8, .663 without.
    """
    found: set[str] = set()
    sums: list[onnx.NodeProto] = []
    pending = [node for node in graph.nodes if node.op_type in ATTENTION_AND_NORMS]
    while pending:
        node = pending.pop()
        # The search ends at residual sums, or it would run along the residual stream through the whole network.
        if node.op_type == "Add" and not any(name in graph.constants for name in node.input):
            sums.append(node)
            continue
        if node.name in found or node.op_type in ("Conv", "Gemm"):
            continue
        found.add(node.name)
        pending += [producer for name in node.input if (producer := graph.producer(name)) is not None]
        pending += [consumer for name in node.output for consumer in graph.consumers(name)]
    return found | {
        node.name
        for node in sums
        if any((producer := graph.producer(name)) is not None and producer.name in found for name in node.input)
    }
