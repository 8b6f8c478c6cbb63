"""Rewrites a graph in opset 17 without the operators that TensorRT 8 lacks: for JetPack 5, which stays on 8.5."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from edgeembed.errors import CheckFailed
from edgeembed.export.graph import Graph, attributes_of, new_node, remove_attributes

OPSET = 17
"""The newest that TensorRT 8 reads. Of opset 18 it ignores that reductions take their axes as an input."""
NEWER_ATTRIBUTES = {
    "noop_with_empty_axes": None,
    "saturate": None,
    "antialias": 0,
    "keep_aspect_ratio_policy": b"stretch",
}
"""Attributes of opsets 18 and 19, and the value with which they mean what opset 17 does; None: any value, as exported
files have no empty axes and no float8.
"""
REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare")


def decompose_layer_norm(graph: Graph) -> None:
    """Replaces each LayerNormalization over the last axis by its formula, in float32, its type in every precision."""

    def replacement(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        attributes = attributes_of(node)
        # Any other form stays, and `unsupported_features` reports it.
        if node.op_type != "LayerNormalization" or attributes.get("axis", -1) != -1 or len(node.output) > 1:
            return [node]
        x, y = node.input[0], node.output[0]
        has_bias = len(node.input) > 2
        graph.add_constant(f"{y}_epsilon", np.asarray(attributes.get("epsilon", 1e-5), np.float32))
        graph.add_constant(f"{y}_axes", np.array([-1], np.int64))
        steps = [
            ("ReduceMean", [x, f"{y}_axes"], f"{y}_mean"),
            ("Sub", [x, f"{y}_mean"], f"{y}_centred"),
            ("Mul", [f"{y}_centred", f"{y}_centred"], f"{y}_squares"),
            ("ReduceMean", [f"{y}_squares", f"{y}_axes"], f"{y}_variance"),
            ("Add", [f"{y}_variance", f"{y}_epsilon"], f"{y}_positive"),
            ("Sqrt", [f"{y}_positive"], f"{y}_deviation"),
            ("Div", [f"{y}_centred", f"{y}_deviation"], f"{y}_normal"),
            ("Mul", [f"{y}_normal", node.input[1]], f"{y}_unshifted" if has_bias else y),
        ]
        # Names start with the output's, so that they are unique in the graph.
        if has_bias:
            steps.append(("Add", [f"{y}_unshifted", node.input[2]], y))
        return [new_node(op_type, inputs, output) for op_type, inputs, output in steps]

    graph.rewrite(replacement)


def decompose_gelu(graph: Graph) -> None:
    """Replaces each exact Gelu by x / 2 (1 + erf(x / sqrt 2)), in the type of x; the tanh approximation is left."""
    float16 = float16_tensors(graph)

    def replacement(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        if node.op_type != "Gelu" or attributes_of(node).get("approximate") == b"tanh":
            return [node]
        x, y = node.input[0], node.output[0]
        # ONNX operators take all inputs in one type.
        dtype: npt.DTypeLike = np.float16 if x in float16 else np.float32
        for name, value in (("root", 0.5**0.5), ("one", 1.0), ("half", 0.5)):
            graph.add_constant(f"{y}_{name}", np.asarray(value, dtype))
        return [
            new_node("Mul", [x, f"{y}_root"], f"{y}_scaled"),
            new_node("Erf", [f"{y}_scaled"], f"{y}_erf"),
            new_node("Add", [f"{y}_erf", f"{y}_one"], f"{y}_plus"),
            new_node("Mul", [x, f"{y}_plus"], f"{y}_product"),
            new_node("Mul", [f"{y}_product", f"{y}_half"], y),
        ]

    graph.rewrite(replacement)


def float16_tensors(graph: Graph) -> set[str]:
    """Names of the float16 tensors: constants, results of a Cast, and what is computed from either up to a Cast."""
    found = {name for name, tensor in graph.constants.items() if tensor.data_type == onnx.TensorProto.FLOAT16}
    for node in graph.nodes:
        if node.op_type == "Cast":
            if attributes_of(node)["to"] == onnx.TensorProto.FLOAT16:
                found.update(node.output)
        elif any(name in found for name in node.input):
            found.update(node.output)
    return found


def downgrade_to_opset_17(model: onnx.ModelProto) -> None:
    """Writes a model in opset 17, in place. Raises CheckFailed for a model that needs something newer."""
    set_split_sizes(model)  # first, as it needs shape inference in the opset of the file
    graph = Graph(model)
    slice_partial_shapes(graph)
    move_axes_to_attribute(graph)
    for node in graph.nodes:
        # An attribute with another value is kept, so that the checker refuses it below.
        for name, value in attributes_of(node).items():
            if name in NEWER_ATTRIBUTES and NEWER_ATTRIBUTES[name] in (None, value):
                remove_attributes(node, name)
    for opset in model.opset_import:
        if not opset.domain:
            opset.version = OPSET
    # What is left of newer opsets, an attribute or an input, is an error of the checker.
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise CheckFailed(f"the graph cannot be written in opset {OPSET}: {first_line(error)}") from None


def set_split_sizes(model: onnx.ModelProto) -> None:
    """Gives each Split into a number of equal parts, which opset 18 introduced, the sizes of the parts, where known."""
    graph = Graph(model)
    splits = [node for node in graph.nodes if node.op_type == "Split" and len(node.input) == 1]
    if not splits:
        return
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in inferred.value_info}
    for node in splits:
        axis = attributes_of(node).get("axis", 0)
        # 0 for a size that shape inference does not know.
        sizes = [shapes[name][axis].dim_value if shapes.get(name) else 0 for name in node.output]
        if all(sizes):
            node.input.append(graph.add_constant(f"{node.output[0]}_sizes", np.array(sizes, np.int64)))
            remove_attributes(node, "num_outputs")


def slice_partial_shapes(graph: Graph) -> None:
    """Replaces each Shape with a start or an end by a whole Shape and a Slice: TensorRT 8 ignores both attributes."""

    def replacement(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        attributes = attributes_of(node)
        if node.op_type != "Shape" or not attributes:
            return [node]
        output = node.output[0]
        limits = {"start": attributes.get("start", 0), "end": attributes.get("end", 2**31 - 1), "axis": 0}
        parameters = [
            graph.add_constant(f"{output}_{name}", np.array([value], np.int64)) for name, value in limits.items()
        ]
        # The Slice takes over the name, so that the consumers of the shape stay as they are.
        node.output[0] = f"{output}_whole"
        del node.attribute[:]
        return [node, new_node("Slice", [node.output[0], *parameters], output)]

    graph.rewrite(replacement)


def move_axes_to_attribute(graph: Graph) -> None:
    """Moves the axes of reductions from their second input, where opset 18 has them, to the attribute of opset 17."""
    for node in graph.nodes:
        if node.op_type in REDUCTIONS and len(node.input) == 2 and node.input[1] in graph.constants:
            node.attribute.append(helper.make_attribute("axes", graph.array(node.input[1]).tolist()))
            del node.input[1]


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
