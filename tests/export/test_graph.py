"""The index of a graph, and edits that keep it right."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeembed.export.graph import Graph, attributes_of, copy_model, new_node, remove_attributes


@pytest.fixture
def model() -> onnx.ModelProto:
    """embedding = (image + one) * (image + one), with a constant that nothing uses."""
    nodes = [
        new_node("Add", ["image", "one"], "sum"),
        new_node("Mul", ["sum", "sum"], "embedding"),
    ]
    value_infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("image", "embedding")]
    constants = [numpy_helper.from_array(np.ones(3, np.float32), name) for name in ("one", "unused")]
    graph = helper.make_graph(nodes, "test", value_infos[:1], value_infos[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def outputs(graph: Graph) -> list[str]:
    return [node.output[0] for node in graph.nodes]


def test_tensors_lead_to_producers_consumers_and_constants(model: onnx.ModelProto) -> None:
    graph = Graph(model)
    assert graph.image == "image"
    assert graph.producer("sum") == model.graph.node[0]
    assert graph.producer("image") is graph.producer("one") is None
    assert graph.consumers("sum") == [model.graph.node[1]]  # once, although it is read twice
    assert graph.consumers("embedding") == []
    assert list(graph.constants) == ["one", "unused"]
    np.testing.assert_array_equal(graph.array("one"), np.ones(3, np.float32))
    with pytest.raises(KeyError):
        graph.array("sum")


def test_constants_are_added_changed_and_removed_where_nothing_uses_them(model: onnx.ModelProto) -> None:
    graph = Graph(model)
    assert graph.add_constant("two", np.float32(2)) == "two"
    graph.set_constant("one", np.zeros((), np.int8))
    assert graph.array("one").dtype == np.int8
    assert graph.array("two") == 2
    graph.remove_unused_constants()
    assert list(graph.constants) == [tensor.name for tensor in model.graph.initializer] == ["one"]


def test_a_constant_that_is_an_output_is_kept(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [3]))
    graph = Graph(model)
    graph.remove_unused_constants()
    assert "unused" in graph.constants


def test_nodes_are_replaced_inserted_and_removed_in_place(model: onnx.ModelProto) -> None:
    graph = Graph(model)
    (add, mul) = graph.nodes
    graph.replace({"sum": [add, new_node("Relu", ["sum"], "positive")]})
    assert outputs(graph) == ["sum", "positive", "embedding"]
    assert graph.producer("positive") == graph.nodes[1]
    graph.rewrite(lambda node: [] if node.op_type == "Relu" else [node])
    assert outputs(graph) == ["sum", "embedding"]
    assert graph.producer("positive") is None
    graph.set_nodes([mul, add])
    assert outputs(graph) == ["embedding", "sum"]
    assert [node.op_type for node in model.graph.node] == ["Mul", "Add"]


def test_an_edit_by_hand_is_seen_after_the_graph_is_indexed_again(model: onnx.ModelProto) -> None:
    graph = Graph(model)
    graph.nodes[0].output[0] = "total"
    graph.nodes[1].input[:] = ["total", "total"]
    assert graph.producer("total") is None
    graph.reindex()
    assert graph.producer("total") == model.graph.node[0]
    assert graph.consumers("total") == [model.graph.node[1]]


def test_a_new_node_is_named_after_its_output_and_attributes_are_python_values() -> None:
    node = new_node("Resize", ["x", "", "scales"], "y", mode="nearest", antialias=1)
    assert (node.name, list(node.output)) == ("y", ["y"])
    assert attributes_of(node) == {"mode": b"nearest", "antialias": 1}
    remove_attributes(node, "antialias", "axes")
    assert attributes_of(node) == {"mode": b"nearest"}


def test_a_copy_can_be_edited_alone(model: onnx.ModelProto) -> None:
    copy = copy_model(model)
    Graph(copy).remove_unused_constants()
    assert len(copy.graph.initializer) == 1
    assert len(model.graph.initializer) == 2
