"""An ONNX file of one matrix product, encoded without the package onnx, which a device need not have.

The numbers of the fields are those of onnx.proto, the encoding is that of Protocol Buffers: a field is its number and
its wire type, then an integer in groups of 7 bits (type 0) or a length and as many bytes (type 2).
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

IR_VERSION, OPSET = 8, 18
ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "float16": 10}
"""TensorProto.DataType of numpy's types."""

Array = npt.NDArray[Any]


def product_model(operator: str, x: Array, weight: Array, y: Array) -> bytes:
    """y = operator(x, weight) as a ModelProto; `weight` is a constant, of `x` and `y` only shape and type are read."""
    node = _field(1, b"x") + _field(1, b"w") + _field(2, b"y") + _field(4, operator.encode())
    constant = b"".join(_field(1, side) for side in weight.shape)
    constant += _field(2, ELEMENT_TYPES[weight.dtype.name]) + _field(8, b"w") + _field(9, weight.tobytes())
    graph = _field(1, node) + _field(2, b"product") + _field(5, constant)
    graph += _field(11, _value_info(b"x", x)) + _field(12, _value_info(b"y", y))
    return _field(1, IR_VERSION) + _field(7, graph) + _field(8, _field(1, b"") + _field(2, OPSET))


def _value_info(name: bytes, array: Array) -> bytes:
    shape = b"".join(_field(1, _field(1, side)) for side in array.shape)
    return _field(1, name) + _field(2, _field(1, _field(1, ELEMENT_TYPES[array.dtype.name]) + _field(2, shape)))


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Seven bits a byte, the least significant first; the highest bit says that more follow."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
