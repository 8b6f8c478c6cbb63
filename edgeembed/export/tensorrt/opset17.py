"""What TensorRT 8 does not know, said in opset 17 and by formulas: for JetPack 5, which stays on 8.5."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgeembed.errors import CheckFailed

OPSET = 17
"""The newest that 8 reads. Of 18 it overlooks that reductions have their axes as an input."""
NEWER_ATTRIBUTES = {
    "noop_with_empty_axes": None,
    "saturate": None,
    "antialias": 0,
    "keep_aspect_ratio_policy": b"stretch",
}
"""Those of opsets 18 and 19, and the value at which they say what 17 does; None: any, as there are no empty axes and no
float8 here.
"""
REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare")


def write_out_layer_norm(graph: onnx.GraphProto) -> None:
    """LayerNormalization over the last axis in float32, where it stays in files of every precision, by its formula."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        said = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type != "LayerNormalization" or said.get("axis", -1) != -1 or len(node.output) > 1:
            nodes.append(node)
            continue
        x, y = node.input[0], node.output[0]
        epsilon = np.asarray(said.get("epsilon", 1e-5), np.float32)
        graph.initializer.append(numpy_helper.from_array(epsilon, f"{y}_epsilon"))
        graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), f"{y}_axes"))
        steps = [
            ("ReduceMean", [x, f"{y}_axes"], f"{y}_mean"),
            ("Sub", [x, f"{y}_mean"], f"{y}_centred"),
            ("Mul", [f"{y}_centred", f"{y}_centred"], f"{y}_squares"),
            ("ReduceMean", [f"{y}_squares", f"{y}_axes"], f"{y}_variance"),
            ("Add", [f"{y}_variance", f"{y}_epsilon"], f"{y}_positive"),
            ("Sqrt", [f"{y}_positive"], f"{y}_deviation"),
            ("Div", [f"{y}_centred", f"{y}_deviation"], f"{y}_normal"),
            ("Mul", [f"{y}_normal", node.input[1]], f"{y}_unshifted" if len(node.input) > 2 else y),
            *([("Add", [f"{y}_unshifted", node.input[2]], y)] if len(node.input) > 2 else []),
        ]
        nodes += [helper.make_node(kind, reads, [made], name=made) for kind, reads, made in steps]
    replace_nodes(graph, nodes)


def write_out_gelu(graph: onnx.GraphProto) -> None:
    """Gelu as x / 2 (1 + erf(x / sqrt 2)), in the type of x."""
    half = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    in_half = half_values(graph, half)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "Gelu":
            nodes.append(node)
            continue
        if any(item.name == "approximate" and item.s == b"tanh" for item in node.attribute):
            nodes.append(node)
            continue
        dtype: npt.DTypeLike = np.float16 if node.input[0] in in_half else np.float32
        x, y = node.input[0], node.output[0]
        for name, value in (("root", 0.5**0.5), ("one", 1.0), ("half", 0.5)):
            graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), f"{y}_{name}"))
        nodes += [
            helper.make_node("Mul", [x, f"{y}_root"], [f"{y}_scaled"], name=f"{y}_scaled"),
            helper.make_node("Erf", [f"{y}_scaled"], [f"{y}_erf"], name=f"{y}_erf"),
            helper.make_node("Add", [f"{y}_erf", f"{y}_one"], [f"{y}_plus"], name=f"{y}_plus"),
            helper.make_node("Mul", [x, f"{y}_plus"], [f"{y}_product"], name=f"{y}_product"),
            helper.make_node("Mul", [f"{y}_product", f"{y}_half"], [y], name=y),
        ]
    replace_nodes(graph, nodes)


def shapes_whole(graph: onnx.GraphProto) -> None:
    """A part of a shape as the whole, cut: TensorRT 8 overlooks the ends that Shape has since opset 15."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        ends = {item.name: item.i for item in node.attribute if item.name in ("start", "end")}
        nodes.append(node)
        if node.op_type != "Shape" or not ends:
            continue
        output, whole = node.output[0], f"{node.output[0]}_whole"
        for name, value in (("start", ends.get("start", 0)), ("end", ends.get("end", 2**31 - 1)), ("axis", 0)):
            graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), f"{output}_{name}"))
        node.output[0] = whole
        del node.attribute[:]
        cut = [whole, *(f"{output}_{name}" for name in ("start", "end", "axis"))]
        nodes.append(helper.make_node("Slice", cut, [output], name=output))
    replace_nodes(graph, nodes)


def splits_by_size(model: onnx.ModelProto) -> None:
    """Splits into a number of equal parts, which opset 18 brought, by the parts' sizes, where shapes say them."""
    if not any(node.op_type == "Split" and len(node.input) == 1 for node in model.graph.node):
        return
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in inferred.value_info}
    for node in model.graph.node:
        if node.op_type != "Split" or len(node.input) > 1:
            continue
        axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
        sides = [shapes[name][axis].dim_value if shapes.get(name) else 0 for name in node.output]
        if all(sides):
            sizes = f"{node.output[0]}_sizes"
            model.graph.initializer.append(numpy_helper.from_array(np.array(sides, np.int64), sizes))
            node.input.append(sizes)
            kept = [item for item in node.attribute if item.name != "num_outputs"]
            del node.attribute[:]
            node.attribute.extend(kept)


def say_in_opset_17(model: onnx.ModelProto) -> None:
    """Raises CheckFailed for a model that needs something newer."""
    splits_by_size(model)
    shapes_whole(model.graph)
    axes_as_attribute(model)
    for node in model.graph.node:
        for item in [item for item in node.attribute if item.name in NEWER_ATTRIBUTES]:
            if NEWER_ATTRIBUTES[item.name] in (None, helper.get_attribute_value(item)):
                node.attribute.remove(item)
    for opset in model.opset_import:
        if not opset.domain:
            opset.version = OPSET
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise CheckFailed(f"the graph cannot be said in opset {OPSET}: {first_line(error)}") from None


def axes_as_attribute(model: onnx.ModelProto) -> None:
    """Reductions read their axes as an input since opset 18."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in REDUCTIONS and len(node.input) == 2 and node.input[1] in constants:
            axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
            node.attribute.append(helper.make_attribute("axes", axes))
            del node.input[1]


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Sets a graph's nodes; they may be its own, which emptying it would spoil."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def half_values(graph: onnx.GraphProto, half: set[str]) -> set[str]:
    """Names of values that are float16: what is cast to it, and what is computed from it until it is cast away."""
    found = set(half)
    for node in graph.node:
        if node.op_type == "Cast":
            to = next(item.i for item in node.attribute if item.name == "to")
            if to == onnx.TensorProto.FLOAT16:
                found.update(node.output)
        elif any(name in found for name in node.input):
            found.update(node.output)
    return found
