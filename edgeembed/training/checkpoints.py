"""Saves and restores checkpoints of both training loops: safetensors and JSON, written whole or not at all.

Tensors are streamed to disk one at a time, so that saving needs no memory for copies: a ViT-H-14 with its optimiser is
7.6 GB on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeembed.errors import UserError
from edgeembed.files import read_json, remove_folder, whole_folder, write_json
from edgeembed.network.tensor_files import iterate_tensors, load_module, save_tensors
from edgeembed.run_folder import RunFolder


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
    final = run.path / "checkpoints" / f"step-{step:08d}"
    # A resumed run repeats its steps exactly: the checkpoint of this step would be the same.
    if final.exists():
        return
    with whole_folder(final) as unfinished:
        save_tensors(unfinished / "model.safetensors", model.state_dict())
        # Optimisers keep their state by parameter object; names stay valid in another process.
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        slots: dict[str, Tensor] = {}
        for parameter, values in (item for optimizer in optimizers for item in optimizer.state.items()):
            for key, value in values.items():
                # A count of steps may be a Python number, which a safetensors file cannot hold.
                slots[f"{names[id(parameter)]}:{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
        save_tensors(unfinished / "optimizer.safetensors", slots)
        write_json(unfinished / "state.json", {"step": step, **state})
    for old in run.checkpoints()[:-keep]:
        remove_folder(old)


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
