"""Combines finished teachers into an ensemble: their weighted embeddings, one after the other, or a projection of them.

The projection is a PCA of standardised embeddings: those of different networks differ in their spread, and PCA would
see mostly the widest. Each dimension has a mean of its own, and a network one deviation, as in PHI-S (Ranzinger et al.
2024). A deviation for each dimension would whiten PCA-rotated embeddings, and give their noise the weight of their
leading dimensions: for two frozen networks and 355 training photographs the val mAP was .45 in place of .78.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeembed.data.manifest import Manifest
from edgeembed.errors import UserError
from edgeembed.files import read_json
from edgeembed.model_json import ModelOrigin
from edgeembed.network.model import EmbeddingModel, EnsembleModel
from edgeembed.network.model_files import load_model, save_model
from edgeembed.network.space_id import space_id
from edgeembed.run_folder import RunFolder
from edgeembed.teacher.head_files import load_head, save_head
from edgeembed.teacher.pca import Statistics, principal_axes, require_images, training_statistics
from edgeembed.teacher.result import finish_untrained
from edgeembed.training.device import pick_device
from edgeembed.training.precision import choose_precision

LEAST_VARIANCE = 1e-12  # of unit vectors: a teacher that varies less gives every image the same embedding


def build_ensemble(
    paths: Sequence[Path],
    weights: Sequence[float],
    run: RunFolder,
    *,
    manifest: Manifest | None = None,
    dim: int = 64,
    workers: int = 2,
) -> dict[str, Any]:
    """Writes a run folder that can be used like that of any finished teacher; returns its model.json.

    With a manifest, the embedding has `dim` dimensions, computed from its training images, and eval.json is written;
    without one, it is the concatenation.

    Raises UserError for fewer than two runs, for weights that are not one positive number per run, for input images of
    different proportions, and for a `dim` that teachers or images are too few for.
    """
    if len(paths) < 2 or len(weights) != len(paths) or not all(1e-3 <= weight <= 1e3 for weight in weights):
        raise UserError(
            f"{len(paths)} runs and weights {list(weights)}: expected two or more runs, and a weight of 0.001 to 1000 "
            "for each"
        )
    if run.path.exists() and any(run.path.iterdir()):
        raise UserError(f"{run.path}: is not empty: choose another --out")
    started = time.monotonic()
    members, origins = load_members(paths)
    ensemble = EnsembleModel(members, weights).eval()
    origin = ModelOrigin(
        role="teacher",
        data=origins[0].data,
        members={str(path): each.space_id for path, each in zip(paths, origins, strict=True)},
        precision="fp32",
    )
    if manifest is None:
        save_common_head(paths, ensemble, run)
        save_model(run, ensemble, origin.model_copy(update={"space_id": space_id(ensemble)}))
        return read_json(run.model_json)

    ensemble, origin = project_ensemble(ensemble, origin, manifest, dim=dim, workers=workers)
    save_common_head(paths, ensemble, run)
    finish_untrained(run, ensemble, origin, manifest, workers=workers, started=started)
    return read_json(run.model_json)


def load_members(paths: Sequence[Path]) -> tuple[list[EmbeddingModel], list[ModelOrigin]]:
    """The networks of finished runs and how they were trained. Raises UserError where they cannot be combined."""
    members, origins = [], []
    for path in paths:
        model, origin = load_model(path)
        # Not nested: `EnsembleModel.from_description` builds single networks as members.
        if isinstance(model, EnsembleModel) or origin.role != "teacher":
            raise UserError(f"{path}: expected a single teacher's run")
        members.append(model)
        origins.append(origin)
    first = members[0]
    for path, member in zip(paths, members, strict=True):
        # Squares can be resized to each other, images in their own proportions cannot.
        squares = not member.keep_aspect and not first.keep_aspect
        if not squares and (member.size_px, member.keep_aspect) != (first.size_px, first.keep_aspect):
            raise UserError(
                f"{path}: its input is {describe_input(member)}, that of {paths[0]} is {describe_input(first)}: "
                "an ensemble needs teachers with the same input, or squares only"
            )
    return members, origins


def project_ensemble(
    ensemble: EnsembleModel, origin: ModelOrigin, manifest: Manifest, *, dim: int, workers: int
) -> tuple[EnsembleModel, ModelOrigin]:
    """The ensemble, on the device where it was computed, with a projection of the concatenation to `dim` dimensions.

    Raises UserError for fewer dimensions or training images than that needs.
    """
    if not 1 <= dim <= ensemble.dim:
        raise UserError(f"--dim {dim}: the runs have {ensemble.dim} embedding dimensions together: give 1 to that many")
    require_images(len(manifest.training_rows()), dim + 1)  # before any image is read
    device = pick_device("auto")
    precision = choose_precision("auto", device, key="precision")
    ensemble = ensemble.to(device)
    statistics, data = training_statistics(
        ensemble, manifest, at_least=dim + 1, workers=workers, device=device, precision=precision
    )
    members = [member for member in ensemble.members if isinstance(member, EmbeddingModel)]
    projected = EnsembleModel(members, ensemble.weights, dim).to(device).eval()
    assert projected.projection is not None
    weight_DJ, bias_D = standardised_axes(statistics, [member.dim for member in members], ensemble.weights, dim)
    projected.projection.load_state_dict({"weight": weight_DJ.float(), "bias": bias_D.float()})
    return projected, origin.model_copy(update={"data": data, "precision": precision, "device": device})


def standardised_axes(
    statistics: Statistics, dims: Sequence[int], weights: Sequence[float], dim: int
) -> tuple[Tensor, Tensor]:
    """Weight (D, J) and bias (D,) that map J concatenated dimensions to the D = `dim` leading axes of a PCA.

    They are centred first, and scaled so that the variance of a member, summed over its dimensions, is the square of
    its weight.
    """
    variance_J = statistics.covariance_DD.diagonal()
    scales = [
        weight / part.sum().clamp_min(LEAST_VARIANCE).sqrt().expand(len(part))
        for weight, part in zip(weights, variance_J.split(list(dims)), strict=True)
    ]
    scale_J = torch.cat(scales)
    axis_DJ = principal_axes(statistics.covariance_DD * torch.outer(scale_J, scale_J))[:dim]
    # A (x - mean) s = (A s) x - (A s) mean.
    weight_DJ = axis_DJ * scale_J
    return weight_DJ, -(weight_DJ @ statistics.mean_D)


def describe_input(model: EmbeddingModel) -> str:
    """Describes a network's input images in words, for messages."""
    return f"{model.size_px} px in the image's own proportions" if model.keep_aspect else f"{model.size_px} px squares"


def save_common_head(paths: Sequence[Path], ensemble: EnsembleModel, run: RunFolder) -> None:
    """Writes the ensemble's class centres: those of its members, combined as their embeddings are.

    Only where all members know the same classes, with one centre each: other heads have no common centres, and a
    pretrained network that was imported has none.
    """
    if not all((path / "classes.json").is_file() for path in paths):
        return
    heads = [load_head(path) for path in paths]
    classes = heads[0].classes
    if all(head.classes == classes and len(head.centre_RD) == len(classes) for head in heads):
        device = next(ensemble.parameters()).device
        with torch.no_grad():
            centre_RD = ensemble.combine([F.normalize(head.centre_RD, dim=1).to(device) for head in heads])
        save_head(run.path, centre_RD.cpu(), classes)
