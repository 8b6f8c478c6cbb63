"""Training on from a finished teacher: its network, its class centres, and centres for classes it has not seen."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeembed.data.manifest import Rows
from edgeembed.errors import UserError
from edgeembed.files import read_json
from edgeembed.network.model import EmbeddingModel, EnsembleModel
from edgeembed.network.model_files import load_model
from edgeembed.network.tensor_files import iterate_tensors
from edgeembed.teacher.margin import ClassCentres
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.training.validation import embed_files

log = logging.getLogger(__name__)

IMAGES_FOR_A_CENTRE = 20


@dataclass(frozen=True, kw_only=True)
class Parent:
    """What a finished teacher leaves to the run that continues it."""

    path: Path
    space_id: str
    classes: list[tuple[str, ...]]
    centres_RD: Tensor


def open_parent(recipe: TeacherRecipe) -> tuple[EmbeddingModel, Parent]:
    """The network and the head of `recipe.continue_from`. Raises UserError where the recipe describes another one."""
    path = Path(str(recipe.continue_from))
    model, origin = load_model(path)
    if isinstance(model, EnsembleModel):
        raise UserError(f"continue_from = {str(path)!r}: several teachers joined: continue one of them")
    for key, wanted, found in (
        ("backbone.name", recipe.backbone.name, model.name),
        ("backbone.pooling", recipe.backbone.pooling, model.pooling),
        ("backbone.output_stride", recipe.backbone.output_stride, model.output_stride),
        ("neck.dim", recipe.neck.dim, model.dim),
        ("neck.batch_norm", recipe.neck.batch_norm, isinstance(model.neck.batch_norm, nn.BatchNorm1d)),
    ):
        if wanted != found:
            raise UserError(f"{key} = {wanted!r}: {path} was trained with {found!r}: use its recipe, or set {key}")
    classes = [tuple(name) for name in read_json(path / "classes.json")["classes"]]
    centres_RD = dict(iterate_tensors(path / "head.safetensors"))["centres"]
    if len(centres_RD) != len(classes) * recipe.head.centres_per_class:
        raise UserError(
            f"head.centres_per_class = {recipe.head.centres_per_class}: {path} has {len(centres_RD)} centres for "
            f"{len(classes)} classes"
        )
    model.neck.dropout.p = recipe.neck.dropout
    if recipe.train.grad_checkpointing:
        model.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    return model, Parent(path=path, space_id=origin.space_id, classes=classes, centres_RD=centres_RD)


def inherit_centres(
    centres: ClassCentres,
    parent: Parent,
    model: EmbeddingModel,
    *,
    classes: Sequence[tuple[str, ...]],
    files: Sequence[str],
    class_of_image: Rows,
    workers: int,
) -> None:
    """Fills the centres: known classes keep theirs, each new one starts at the mean embedding of some of its images
    (imprinting, Qi et al. 2018).
    """
    number_of = {name: number for number, name in enumerate(parent.classes)}
    new = [number for number, name in enumerate(classes) if name not in number_of]
    chosen = [np.flatnonzero(class_of_image == number)[:IMAGES_FOR_A_CENTRE] for number in new]
    log.info("%d classes of %s go on, %d are new", len(classes) - len(new), parent.path, len(new))
    with torch.no_grad():
        weight_KCD = centres.weight.view(len(classes), centres.per_class, -1)
        parent_KCD = parent.centres_RD.view(len(parent.classes), centres.per_class, -1)
        for number, name in enumerate(classes):
            if name in number_of:
                weight_KCD[number] = parent_KCD[number_of[name]]
        if not new:
            return
        images = np.concatenate(chosen)
        embedding_MD, kept_M = embed_files(
            model, [files[image] for image in images], batch_size=32, workers=workers, device="cpu", precision="fp32"
        )
        class_M = class_of_image[images[kept_M]]
        length = parent.centres_RD.norm(dim=1).mean()
        for number in new:
            if (of_class := class_M == number).any():
                mean_D = torch.from_numpy(embedding_MD[of_class].mean(axis=0))
                spread_CD = 0.1 * length * F.normalize(weight_KCD[number], dim=1)  # centres of one class start apart
                weight_KCD[number] = length * F.normalize(mean_D, dim=0) + (spread_CD if centres.per_class > 1 else 0.0)


def report_space(parent: Parent, space_id: str) -> None:
    """Says whether embeddings made with the parent can still be searched."""
    if space_id == parent.space_id:
        log.info("space %s of %s is kept: stored embeddings stay valid", space_id, parent.path)
    else:
        log.warning(
            "space %s becomes %s: embed again what was embedded with %s", parent.space_id, space_id, parent.path
        )
