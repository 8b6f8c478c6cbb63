"""Safetensors files, read and written one tensor at a time; a file appears complete or not at all."""

from __future__ import annotations

import ctypes
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from edgeembed.errors import UserError
from edgeembed.files import whole_file

DTYPE_NAMES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file atomically, with at most one tensor copied in memory at a time.

    The format: 8 bytes of header length (little-endian), a JSON header, then the raw row-major data.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    # The data begins at a multiple of 8 bytes, as the safetensors library writes it.
    encoded += b" " * (-len(encoded) % 8)
    with whole_file(path, needed=8 + len(encoded) + end) as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for tensor in tensors.values():
            row_major = tensor.detach().to("cpu", memory_format=torch.contiguous_format).contiguous()
            if row_major.numel():
                size = row_major.numel() * row_major.element_size()
                # From the tensor's memory: bytes would be a second copy.
                file.write((ctypes.c_char * size).from_address(row_major.data_ptr()))


def iterate_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a safetensors file one at a time. Raises UserError for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def load_module(module: nn.Module, path: Path, *, optional: Sequence[str] = ()) -> None:
    """Loads every parameter and buffer of a module, in place: memory layout is kept. Names and shapes must match.

    Tensors named in `optional` keep their values if the file lacks them.
    """
    targets = dict(module.state_dict(keep_vars=True))
    for name, tensor in iterate_tensors(path):
        target = targets.pop(name, None)
        if target is None or target.shape != tensor.shape:
            raise UserError(f"{path}: tensor {name!r} does not fit the model")
        require_finite(path, name, tensor, unless=target)
        with torch.no_grad():
            target.copy_(tensor)
    missing = [name for name in targets if name not in optional]
    if missing:
        raise UserError(f"{path}: lacks tensor {missing[0]!r} of the model")


def require_finite(path: Path, name: str, tensor: Tensor, *, unless: Tensor) -> None:
    """Raises UserError if a tensor of a file holds NaN or infinity.

    `unless`: the module's tensor, which may itself start with such values, as the masks of some transformers do.
    """
    if tensor.is_floating_point() and not tensor.isfinite().all() and unless.isfinite().all():
        wrong = tensor.numel() - int(tensor.isfinite().sum())
        raise UserError(
            f"{path}: tensor {name!r} has {wrong} of {tensor.numel()} values that are NaN or infinite: "
            "the file is damaged, or its training diverged: use another one"
        )
