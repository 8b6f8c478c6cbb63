"""Joins finished teachers into one that gives their weighted descriptors, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from edgeembed.errors import UserError
from edgeembed.files import read_json, write_json
from edgeembed.model_json import ModelOrigin
from edgeembed.network.model import EnsembleModel
from edgeembed.network.model_files import load_model, save_model, space_id
from edgeembed.network.tensor_files import iterate_tensors, save_tensors
from edgeembed.run_folder import RunFolder


def join_teachers(paths: Sequence[Path], weights: Sequence[float], run: RunFolder) -> dict[str, Any]:
    """Writes a run folder that everything takes for a teacher; returns its model.json.

    Raises UserError for fewer than two, weights that are not one positive number each, and members that see images of
    different sizes.
    """
    if len(paths) < 2 or len(weights) != len(paths) or min(weights) <= 0:
        raise UserError(f"{len(paths)} runs and weights {list(weights)}: expected two or more, and a weight each")
    if run.path.exists() and any(run.path.iterdir()):
        raise UserError(f"{run.path}: is not empty: choose another --out")
    members, origins = [], []
    for path in paths:
        model, origin = load_model(path)
        if isinstance(model, EnsembleModel) or origin.role != "teacher":
            raise UserError(f"{path}: expected a single teacher's run")
        members.append(model)
        origins.append(origin)
    for path, member in zip(paths, members, strict=True):
        if (member.size_px, member.keep_aspect) != (members[0].size_px, members[0].keep_aspect):
            raise UserError(
                f"{path}: sees images at {member.size_px} px, {paths[0]} at {members[0].size_px} px"
                f"{'' if member.keep_aspect == members[0].keep_aspect else ', in other proportions'}: train them alike"
            )
    joined = EnsembleModel(members, weights).eval()
    join_heads(paths, weights, run)
    origin = ModelOrigin(
        role="teacher",
        space_id=space_id(joined),
        data=origins[0].data,
        members={str(path): each.space_id for path, each in zip(paths, origins, strict=True)},
        precision="fp32",
    )
    save_model(run, joined, origin)
    return read_json(run.model_json)


def join_heads(paths: Sequence[Path], weights: Sequence[float], run: RunFolder) -> None:
    """Class centres of the joined space, where all members know the same classes by one centre each."""
    classes = [read_json(path / "classes.json") for path in paths]
    centres = [dict(iterate_tensors(path / "head.safetensors"))["centres"] for path in paths]
    if all(each == classes[0] for each in classes) and all(len(each) == len(centres[0]) for each in centres):
        parts = [weight * F.normalize(each, dim=1) for weight, each in zip(weights, centres, strict=True)]
        save_tensors(run.path / "head.safetensors", {"centres": F.normalize(torch.cat(parts, dim=1), dim=1)})
        write_json(run.path / "classes.json", classes[0])
