"""The id of an embedding space: a hash of the network that defines it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from edgeembed.model_json import to_json
from edgeembed.network.model import EnsembleModel, Network

NOT_HASHED = {"dropout", "params", "ordered"}  # keys that change no embedding


def space_id(model: Network) -> str:
    """Returns the id of a teacher's embedding space: a hash of everything that changes an embedding, and nothing else.

    It covers architecture, preprocessing, averaging over mirrored images and scales, and every tensor that inference
    reads. Dropout, class centres, batch norm's `num_batches_tracked` and the mark of a PCA rotation change no
    embedding. Of the weights of an ensemble only the proportions count.
    """
    described = _hashed_keys(to_json(model.describe()))
    if isinstance(model, EnsembleModel):
        total = sum(model.weights)
        # Shares, rounded: weights 1, 2 and 0.5, 1 define the same space.
        described["architecture"]["weights"] = [round(weight / total, 9) for weight in model.weights]
    parts = [described[name] for name in ("architecture", "input", "inference") if name in described]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    add_tensors(digest, model)
    return digest.hexdigest()[:16]


def add_tensors(digest: hashlib._Hash, module: nn.Module) -> None:
    """Adds to a hash every tensor that inference with a network reads."""
    # By name, so that the order of definitions in the code does not count.
    for name, tensor in sorted(module.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def _hashed_keys(value: Any) -> Any:
    """A JSON value without `NOT_HASHED`, at any depth, and with the pooling names that ids were computed from."""
    if isinstance(value, dict):
        kept = {key: _hashed_keys(item) for key, item in value.items() if key not in NOT_HASHED}
        # Earlier versions called the default pooling "own": finished teachers keep their ids.
        return {**kept, "pooling": "own"} if kept.get("pooling") == "default" else kept
    return [_hashed_keys(item) for item in value] if isinstance(value, list) else value
