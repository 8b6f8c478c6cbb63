"""Combines finished teachers into an ensemble, whose embedding is their weighted embeddings, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from edgeembed.errors import UserError
from edgeembed.files import read_json
from edgeembed.model_json import ModelOrigin
from edgeembed.network.model import EmbeddingModel, EnsembleModel
from edgeembed.network.model_files import load_model, save_model
from edgeembed.network.space_id import space_id
from edgeembed.run_folder import RunFolder
from edgeembed.teacher.head_files import load_head, save_head


def build_ensemble(paths: Sequence[Path], weights: Sequence[float], run: RunFolder) -> dict[str, Any]:
    """Writes a run folder that can be used like that of any finished teacher; returns its model.json.

    Raises UserError for fewer than two runs, for weights that are not one positive number per run, and for teachers
    whose input images have different sizes.
    """
    if len(paths) < 2 or len(weights) != len(paths) or min(weights) <= 0:
        raise UserError(
            f"{len(paths)} runs and weights {list(weights)}: expected two or more runs, and a weight above 0 for each"
        )
    if run.path.exists() and any(run.path.iterdir()):
        raise UserError(f"{run.path}: is not empty: choose another --out")
    members, origins = [], []
    for path in paths:
        model, origin = load_model(path)
        # Not nested: `EnsembleModel.from_description` builds single networks as members.
        if isinstance(model, EnsembleModel) or origin.role != "teacher":
            raise UserError(f"{path}: expected a single teacher's run")
        members.append(model)
        origins.append(origin)
    for path, member in zip(paths, members, strict=True):
        if (member.size_px, member.keep_aspect) != (members[0].size_px, members[0].keep_aspect):
            raise UserError(
                f"{path}: its input is {describe_input(member)}, that of {paths[0]} is {describe_input(members[0])}: "
                "an ensemble needs teachers with the same input"
            )
    ensemble = EnsembleModel(members, weights).eval()
    save_common_head(paths, weights, run)
    origin = ModelOrigin(
        role="teacher",
        space_id=space_id(ensemble),
        data=origins[0].data,
        members={str(path): each.space_id for path, each in zip(paths, origins, strict=True)},
        precision="fp32",
    )
    save_model(run, ensemble, origin)
    return read_json(run.model_json)


def describe_input(model: EmbeddingModel) -> str:
    """Describes a network's input images in words, for messages."""
    return f"{model.size_px} px in the image's own proportions" if model.keep_aspect else f"{model.size_px} px squares"


def save_common_head(paths: Sequence[Path], weights: Sequence[float], run: RunFolder) -> None:
    """Writes the ensemble's class centres: those of its members, one after the other.

    Only where all members know the same classes, with one centre each: other heads have no common centres.
    """
    heads = [load_head(path) for path in paths]
    classes = heads[0].classes
    if all(head.classes == classes and len(head.centre_RD) == len(classes) for head in heads):
        # Scaled as `EnsembleModel.forward` scales embeddings, so that centres and embeddings can be compared.
        parts = [weight * F.normalize(head.centre_RD, dim=1) for weight, head in zip(weights, heads, strict=True)]
        save_head(run.path, F.normalize(torch.cat(parts, dim=1), dim=1), classes)
