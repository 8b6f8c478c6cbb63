"""Makes a finished teacher of a pretrained network, without training: the neck is a PCA of its features."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict

import torch

from edgeembed.config import to_yaml
from edgeembed.data.manifest import Manifest
from edgeembed.errors import UserError
from edgeembed.eval_json import TeacherEvaluation
from edgeembed.model_json import ModelOrigin
from edgeembed.network.backbone import build_backbone, default_input_size
from edgeembed.network.model import EmbeddingModel, FeatureExtractor, Neck
from edgeembed.network.model_names import library_of
from edgeembed.progress import stage
from edgeembed.run_folder import RunFolder
from edgeembed.teacher.pca import Statistics, principal_axes, require_images, training_statistics
from edgeembed.teacher.pretrained_recipe import ImportedImage, ImportRecipe, import_inputs
from edgeembed.teacher.result import finish_untrained
from edgeembed.training.device import pick_device, replace_slow_convolutions
from edgeembed.training.precision import choose_precision

log = logging.getLogger(__name__)


def import_teacher(
    recipe: ImportRecipe, manifest: Manifest, run: RunFolder, *, workers: int, device: str = "auto"
) -> TeacherEvaluation:
    """Writes a run folder that can be used like that of a trained teacher; returns what eval.json holds.

    Raises UserError for fewer training images than embedding dimensions, and where the network cannot be built.
    """
    with run.locked():
        run.check_start(resume=False)
        return _import(recipe, manifest, run, workers=workers, device=pick_device(device))


def _import(
    recipe: ImportRecipe, manifest: Manifest, run: RunFolder, *, workers: int, device: str
) -> TeacherEvaluation:
    """Imports into a folder that this process has locked."""
    started = time.monotonic()
    at_least = 1 if recipe.neck.dim == "features" else recipe.neck.dim + 1
    require_images(len(manifest.training_rows()), at_least)  # before the network is built
    backbone = recipe.backbone
    size_px = recipe.image.size_px or default_input_size(backbone.name, library_of(backbone.name))
    # Recorded as it was resolved: another version of timm may have another default.
    recipe = recipe.model_copy(update={"image": ImportedImage(size_px=size_px)})
    torch.manual_seed(0)  # of weights that are random, or missing in a file
    with stage(f"building {backbone.name} (weights: {backbone.weights})"):
        model = build_imported(recipe, size_px).to(device).to(memory_format=torch.channels_last)
        replace_slow_convolutions(model, device)
    precision = choose_precision("auto", device, key="precision")
    run.begin(to_yaml(recipe), {name: asdict(each) for name, each in import_inputs(recipe, manifest).items()})
    statistics, data = training_statistics(
        FeatureExtractor(model), manifest, at_least=at_least, workers=workers, device=device, precision=precision
    )
    project_by_pca(model, statistics, keep_features=recipe.neck.dim == "features")
    origin = ModelOrigin(
        role="teacher",
        data=data,
        weights=model.starting_weights,
        precision=precision,
        device=device,
    )
    return finish_untrained(run, model, origin, manifest, workers=workers, started=started)


def build_imported(recipe: ImportRecipe, size_px: int) -> EmbeddingModel:
    """The pretrained network, with a neck that is not computed yet."""
    try:
        backbone = build_backbone(
            recipe.backbone.name, weights=recipe.backbone.weights, size_px=size_px, weights_key="weights"
        )
    except UserError as error:
        if not str(error).startswith("weights"):
            raise
        raise UserError(f"{error}; write them behind the name: {recipe.backbone.name}@FILE") from error
    dim = backbone.dim if recipe.neck.dim == "features" else recipe.neck.dim
    if dim > backbone.dim:
        raise UserError(f"--dim {dim}: {backbone.name} has {backbone.dim} features: give at most as many, or features")
    return EmbeddingModel(backbone, Neck(backbone.dim, dim, 0.0), size_px=size_px)


def project_by_pca(model: EmbeddingModel, statistics: Statistics, *, keep_features: bool) -> None:
    """Sets the neck, in place, to the leading principal axes of the features, or to all features; both centred."""
    if keep_features:
        axis_DF = torch.eye(model.dim, dtype=torch.float64)
    else:
        axis_DF = principal_axes(statistics.covariance_DD)[: model.dim]
        model.pca_rotated = True
    projection = model.neck.projection
    with torch.no_grad():
        # W (x - mean) = W x - W mean.
        projection.weight.copy_(axis_DF.float())
        projection.bias.copy_(-(axis_DF @ statistics.mean_D).float())
