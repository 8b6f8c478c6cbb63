"""Finished teachers and students on disk: weights in safetensors, everything else in model.json."""

from __future__ import annotations

from pathlib import Path

from edgeembed.eval_json import StudentEvaluation, TeacherEvaluation, write_evaluation
from edgeembed.model_json import ModelOrigin, read_model_json, write_model_json
from edgeembed.network.model import Network, network_from_description
from edgeembed.network.tensor_files import load_module, save_tensors
from edgeembed.run_folder import RunFolder, require_run


def save_model(run: RunFolder, model: Network, origin: ModelOrigin) -> None:
    """Writes model.safetensors, then model.json, whose presence says that the run is finished."""
    save_tensors(run.weights, model.state_dict(), metadata={"space_id": origin.space_id})
    write_model_json(run.model_json, model.describe(), origin)


def finish_run(
    run: RunFolder,
    model: Network,
    origin: ModelOrigin,
    *,
    evaluation: TeacherEvaluation | StudentEvaluation,
) -> None:
    """Writes eval.json, then the model."""
    # First, because the run counts as finished once model.json exists.
    write_evaluation(run, evaluation)
    save_model(run, model, origin)


def load_model(path: Path) -> tuple[Network, ModelOrigin]:
    """Returns the network of a finished run, in evaluation mode, and how it was trained.

    Raises UserError if the folder holds no finished run, or if one of its files is damaged.
    """
    require_run(path)
    run = RunFolder(path=path)
    description, origin = read_model_json(run.model_json)
    model = network_from_description(description)
    load_module(model, run.weights)
    return model.eval(), origin
