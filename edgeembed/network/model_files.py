"""Finished teachers and students on disk: weights in safetensors, everything else in model.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgeembed.errors import UserError
from edgeembed.files import read_json, write_json
from edgeembed.network.model import EmbeddingModel, EnsembleModel, Network
from edgeembed.network.tensor_files import load_module, save_tensors
from edgeembed.run_folder import RunFolder, require_run

SCHEMA = "edgeembed-model/1"


def space_id(model: Network) -> str:
    """Identifies a teacher's embedding space: a hash of everything that changes an embedding, and of nothing else.

    It covers architecture, preprocessing, averaging over mirrored images and scales, and every tensor that inference
    reads. Dropout, class centres, batch norm's `num_batches_tracked` and the mark of a PCA rotation change no
    embedding. Of the weights of an ensemble only the proportions count.
    """
    described = _without(model.describe(), {"dropout", "params", "ordered"})
    if isinstance(model, EnsembleModel):
        total = sum(model.weights)
        described["architecture"]["weights"] = [round(weight / total, 9) for weight in model.weights]
    parts = [described[name] for name in ("architecture", "input", "inference") if name in described]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _without(value: Any, names: set[str]) -> Any:
    """A JSON value without some keys, at any depth."""
    if isinstance(value, dict):
        return {key: _without(item, names) for key, item in value.items() if key not in names}
    return [_without(item, names) for item in value] if isinstance(value, list) else value


def save_model(run: RunFolder, model: Network, facts: dict[str, Any]) -> None:
    """Writes model.safetensors, then model.json, whose presence says that the run is finished."""
    save_tensors(run.weights, model.state_dict(), metadata={"space_id": str(facts["space_id"])})
    write_json(run.model_json, {"schema": SCHEMA, **model.describe(), **facts})


def finish_run(
    run: RunFolder,
    model: Network,
    facts: dict[str, Any],
    *,
    evaluation: Mapping[str, Any],
    seconds: float,
    steps: int,
) -> dict[str, Any]:
    """Writes eval.json and the model; returns what eval.json holds."""
    result = {**evaluation, "seconds": round(seconds, 1), "steps": steps}
    write_json(run.path / "eval.json", result)
    save_model(run, model, facts)
    return result


def load_model(path: Path) -> tuple[Network, dict[str, Any]]:
    """A finished run's network, in eval mode, and its model.json. Raises UserError where there is none."""
    require_run(path)
    run = RunFolder(path=path)
    facts = read_json(run.model_json)
    if facts.get("schema") != SCHEMA:
        raise UserError(f"{run.model_json}: schema {facts.get('schema')!r}, this version reads {SCHEMA!r}")
    try:
        kind = EnsembleModel if "members" in facts["architecture"] else EmbeddingModel
        model: Network = kind.from_facts(facts)
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.model_json}: incomplete ({error})") from None
    load_module(model, run.weights)
    return model.eval(), facts
