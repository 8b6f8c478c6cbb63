"""An ONNX graph whose nodes and constants are looked up by the name of a tensor, and edited in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper


class Graph:
    """An index of a model's graph: which node produces a tensor, which nodes consume it, which tensors are constants.

    The constants are the graph's initialisers; exported files hold no Constant nodes. The methods that edit the graph
    keep the index right. Code that changes the inputs or outputs of a node itself calls `reindex` before it looks up a
    tensor that this changed.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.proto = model.graph
        self.reindex()

    def reindex(self) -> None:
        """Reads producers, consumers and constants from the graph as it is now."""
        self.constants: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in self.proto.initializer}
        self._producers: dict[str, onnx.NodeProto] = {}
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.proto.node:
            for name in node.output:
                self._producers[name] = node
            for name in dict.fromkeys(node.input):  # a node may read a tensor twice
                self._consumers.setdefault(name, []).append(node)

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """The nodes in the order of the file."""
        nodes: Sequence[onnx.NodeProto] = self.proto.node
        return nodes

    @property
    def image(self) -> str:
        """The name of the first input, which is the batch of images in every exported file."""
        return str(self.proto.input[0].name)

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """The node that computes a tensor; None for an input of the graph and for a constant."""
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes that have a tensor among their inputs, each once, in the order of the file."""
        return self._consumers.get(tensor, [])

    def array(self, constant: str) -> npt.NDArray[Any]:
        """The value of a constant. Raises KeyError for a tensor that is not one."""
        value: npt.NDArray[Any] = numpy_helper.to_array(self.constants[constant])
        return value

    def add_constant(self, name: str, value: npt.ArrayLike) -> str:
        """Adds a constant of the value's own type, and returns its name."""
        self.proto.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        self.constants[name] = self.proto.initializer[-1]
        return name

    def set_constant(self, name: str, value: npt.ArrayLike) -> None:
        """Gives a constant another value, which may have another type and shape."""
        self.constants[name].CopyFrom(numpy_helper.from_array(np.asarray(value), name))

    def remove_unused_constants(self) -> None:
        """Removes the constants that no node has as an input and that are no output of the graph."""
        used = {name for node in self.proto.node for name in node.input} | {item.name for item in self.proto.output}
        # By position: `remove` compares whole tensors, weights included.
        for position in reversed(range(len(self.proto.initializer))):
            if self.proto.initializer[position].name not in used:
                del self.proto.initializer[position]
        self.reindex()

    def set_nodes(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Replaces all nodes; those given may be the graph's own."""
        # Copies, because emptying the graph invalidates the nodes that belong to it.
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.proto.node[:]
        self.proto.node.extend(copies)
        self.reindex()

    def rewrite(self, replacement: Callable[[onnx.NodeProto], Sequence[onnx.NodeProto]]) -> None:
        """Puts `replacement(node)` in the place of each node; it may return the node itself, others or none."""
        self.set_nodes([new for node in self.proto.node for new in replacement(node)])

    def replace(self, replacements: Mapping[str, Sequence[onnx.NodeProto]]) -> None:
        """Replaces single nodes, each named by its first output, and leaves the others as they are."""
        self.rewrite(lambda node: replacements.get(node.output[0], [node]))


def new_node(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """A node with one output, named after it."""
    return helper.make_node(op_type, list(inputs), [output], name=output, **attributes)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node as Python values; strings are bytes."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def remove_attributes(node: onnx.NodeProto, *names: str) -> None:
    """Removes the attributes of these names, where the node has them."""
    for item in [item for item in node.attribute if item.name in names]:
        node.attribute.remove(item)


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that can be edited without changing the original."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
