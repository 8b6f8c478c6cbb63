"""Finished teachers and students on disk: weights in safetensors, everything else in model.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgeembed.checkpoint import load_module, save_tensors
from edgeembed.errors import UserError
from edgeembed.run import RunFolder, read_json, require_run, write_json
from edgeembed.teacher.model import EmbeddingModel, JoinedModel, Network

SCHEMA = "edgeembed-model/1"


def space_id(model: Network) -> str:
    """Names a teacher's embedding space: a hash of preprocessing, architecture and weights, without class centres."""
    described = model.describe()
    digest = hashlib.sha256(json.dumps([described["architecture"], described["input"]], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


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
        kind = JoinedModel if "members" in facts["architecture"] else EmbeddingModel
        model: Network = kind.from_facts(facts)
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.model_json}: incomplete ({error})") from None
    load_module(model, run.weights)
    return model.eval(), facts
