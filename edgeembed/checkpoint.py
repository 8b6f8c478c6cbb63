"""What teacher and student share of saving and resuming: safetensors and JSON, whole or not at all.

Tensors are streamed to disk one at a time, so that a checkpoint costs no memory of its own: a ViT-H-14 with
its optimiser is 7.6 GB on disk.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from edgeembed.errors import UserError, WriteFailed
from edgeembed.files import read_json, sync_folder, whole_file, write_failure, write_json
from edgeembed.run import RunFolder

DTYPE_NAMES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, atomically, holding at most one tensor's copy in memory.

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
    encoded += b" " * (-len(encoded) % 8)
    with whole_file(path, needed=8 + len(encoded) + end) as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for tensor in tensors.values():
            row_major = tensor.detach().to("cpu", memory_format=torch.contiguous_format).contiguous()
            if row_major.numel():
                size = row_major.numel() * row_major.element_size()
                file.write((ctypes.c_char * size).from_address(row_major.data_ptr()))


def iterate_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Reads a safetensors file one tensor at a time. Raises UserError for a file that is none."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def load_module(module: nn.Module, path: Path, *, optional: Sequence[str] = ()) -> None:
    """Fills every parameter and buffer of a module, in place (memory layout is kept); names and shapes must match.

    Tensors named in `optional` keep their values where the file lacks them.
    """
    targets = dict(module.state_dict(keep_vars=True))
    for name, tensor in iterate_tensors(path):
        target = targets.pop(name, None)
        if target is None or target.shape != tensor.shape:
            raise UserError(f"{path}: tensor {name!r} does not fit the model")
        require_finite(path, name, tensor, unless=target)
        with torch.no_grad():
            target.copy_(tensor)
    lacking = [name for name in targets if name not in optional]
    if lacking:
        raise UserError(f"{path}: lacks tensor {lacking[0]!r} of the model")


def require_finite(path: Path, name: str, tensor: Tensor, *, unless: Tensor) -> None:
    """Raises UserError where a tensor of a file holds NaN or infinity, `unless` the module itself begins with such
    values, as the masks of some transformers do.
    """
    if tensor.is_floating_point() and not tensor.isfinite().all() and unless.isfinite().all():
        wrong = tensor.numel() - int(tensor.isfinite().sum())
        raise UserError(
            f"{path}: tensor {name!r} has {wrong} of {tensor.numel()} values that are NaN or infinite: "
            "the file is damaged, or its training diverged: use another one"
        )


def save_checkpoint(
    run: RunFolder,
    *,
    step: int,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    keep: int,
    state: Mapping[str, Any],
) -> None:
    """Publishes checkpoints/step-XXXXXXXX by rename and removes all but the newest `keep`."""
    folder = run.path / "checkpoints"
    final = folder / f"step-{step:08d}"
    if final.exists():
        return
    partial = folder / f".{final.name}.{os.getpid()}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_tensors(partial / "model.safetensors", model.state_dict())
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        slots: dict[str, Tensor] = {}
        for parameter, values in (item for optimizer in optimizers for item in optimizer.state.items()):
            for key, value in values.items():
                slots[f"{names[id(parameter)]}:{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
        save_tensors(partial / "optimizer.safetensors", slots)
        write_json(partial / "state.json", {"step": step, **state})
        sync_folder(partial)
        partial.rename(final)
        sync_folder(folder)
    except WriteFailed as error:
        raise WriteFailed(str(error).replace(str(partial), str(final))) from error
    except OSError as error:
        raise write_failure(error, final) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in run.checkpoints()[:-keep]:
        removed = folder / f".{old.name}.{os.getpid()}"  # a half removed checkpoint must not look like a whole one
        old.rename(removed)
        shutil.rmtree(removed)


def load_checkpoint(
    run: RunFolder,
    *,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    optional: Sequence[str] = (),
) -> dict[str, Any] | None:
    """Restores the newest checkpoint into model and optimisers and returns its state; None where there is none.

    Tensors of the model named in `optional` keep their values where the checkpoint lacks them.

    Adam's moments take the memory layout of their parameter: fused AdamW reads a contiguous moment beside a
    channels_last weight in the wrong order.
    """
    checkpoints = run.checkpoints()
    if not checkpoints:
        return None
    load_module(model, checkpoints[-1] / "model.safetensors", optional=optional)
    parameters = dict(model.named_parameters())
    owner = {
        id(parameter): optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for slot, tensor in iterate_tensors(checkpoints[-1] / "optimizer.safetensors"):
        name, _, key = slot.rpartition(":")
        parameter = parameters.get(name)
        if parameter is None or id(parameter) not in owner:
            raise UserError(f"{checkpoints[-1]}: optimiser state of {name!r} does not fit the model")
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
        counts = tensor.ndim == 0 and not tensor.is_floating_point()  # SparseAdam counts its steps in a Python int
        owner[id(parameter)].state[parameter][key] = tensor.item() if counts else tensor
    return read_json(checkpoints[-1] / "state.json")
