"""An ONNX model of one matrix product, encoded without the package onnx, which the base install lacks.

Field numbers are those of onnx.proto. In Protocol Buffers a field is its number and wire type, followed by an integer
in groups of 7 bits (type 0), or by a length and that many bytes (type 2).
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

IR_VERSION, OPSET = 8, 18
ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "float16": 10}
"""TensorProto.DataType of each numpy type."""

Array = npt.NDArray[Any]


def product_model(operator: str, x: Array, weight: Array, y: Array) -> bytes:
    """Encodes y = operator(x, weight) as a ModelProto, with a constant `weight`; `x` and `y` give shape and type."""
    # NodeProto: input (1), output (2), op_type (4).
    node = _field(1, b"x") + _field(1, b"w") + _field(2, b"y") + _field(4, operator.encode())
    # TensorProto: dims (1), data_type (2), name (8), raw_data (9).
    constant = b"".join(_field(1, side) for side in weight.shape)
    constant += _field(2, ELEMENT_TYPES[weight.dtype.name]) + _field(8, b"w") + _field(9, weight.tobytes())
    # GraphProto: node (1), name (2), initializer (5), input (11), output (12).
    graph = _field(1, node) + _field(2, b"product") + _field(5, constant)
    graph += _field(11, _value_info(b"x", x)) + _field(12, _value_info(b"y", y))
    # ModelProto: ir_version (1), graph (7), opset_import (8), which has domain (1) and version (2).
    return _field(1, IR_VERSION) + _field(7, graph) + _field(8, _field(1, b"") + _field(2, OPSET))


def _value_info(name: bytes, array: Array) -> bytes:
    # ValueInfoProto: name (1), type (2); in it tensor_type (1): elem_type (1), shape (2) of dim_value.
    shape = b"".join(_field(1, _field(1, side)) for side in array.shape)
    return _field(1, name) + _field(2, _field(1, _field(1, ELEMENT_TYPES[array.dtype.name]) + _field(2, shape)))


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Seven bits in each byte, the least significant first; the highest bit is set where more bytes follow."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
