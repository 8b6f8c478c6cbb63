"""Warm start from a finished teacher: its network, its class centres, and centres for classes that it does not know."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from edgeembed.data.manifest import Rows
from edgeembed.errors import UserError
from edgeembed.network.model import EmbeddingModel, EnsembleModel
from edgeembed.network.model_files import load_model
from edgeembed.teacher.head_files import SavedHead, load_head
from edgeembed.teacher.margin import ClassCentres
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.training.embed import embed_files

log = logging.getLogger(__name__)

IMAGES_PER_NEW_CENTRE = 20  # each costs a forward pass on the CPU before training starts


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """The finished teacher that a run continues from."""

    path: Path
    space_id: str
    head: SavedHead


def load_warm_start(recipe: TeacherRecipe) -> tuple[EmbeddingModel, WarmStart]:
    """The network and the head of `recipe.continue_from`.

    Raises UserError for an ensemble, and where the recipe describes another network than that teacher's.
    """
    path = Path(str(recipe.continue_from))
    model, origin = load_model(path)
    if isinstance(model, EnsembleModel):
        raise UserError(f"continue_from = {str(path)!r}: an ensemble cannot be trained: continue one of its teachers")
    # These keys define the network; all others may differ from those of the earlier run.
    for key, in_recipe, in_teacher in (
        ("backbone.name", recipe.backbone.name, model.name),
        ("backbone.pooling", recipe.backbone.pooling, model.pooling),
        ("backbone.output_stride", recipe.backbone.output_stride, model.output_stride),
        ("backbone.blocks", recipe.backbone.blocks, model.blocks),
        ("neck.dim", recipe.neck.dim, model.dim),
        ("neck.batch_norm", recipe.neck.batch_norm, isinstance(model.neck.batch_norm, nn.BatchNorm1d)),
    ):
        if in_recipe != in_teacher:
            raise UserError(
                f"{key} = {in_recipe!r}: {path} was trained with {in_teacher!r}: use its recipe, or set {key}"
            )
    head = load_head(path)
    if len(head.centre_RD) != len(head.classes) * recipe.head.centres_per_class:
        raise UserError(
            f"head.centres_per_class = {recipe.head.centres_per_class}: {path} has {len(head.centre_RD)} centres for "
            f"{len(head.classes)} classes"
        )
    # Both matter in training alone: the recipe decides, not the earlier run.
    model.neck.dropout.p = recipe.neck.dropout
    if recipe.train.grad_checkpointing:
        model.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    return model, WarmStart(path=path, space_id=origin.space_id, head=head)


def warm_start_centres(
    centres: ClassCentres,
    warm_start: WarmStart,
    model: EmbeddingModel,
    *,
    classes: Sequence[tuple[str, ...]],
    files: Sequence[str],
    class_of_image: Rows,
    workers: int,
) -> None:
    """Fills the centres: known classes keep theirs, new ones start at the mean embedding of some of their images.

    This is imprinting (Qi et al. 2018).
    """
    number_of = {name: number for number, name in enumerate(warm_start.head.classes)}
    new = [number for number, name in enumerate(classes) if name not in number_of]
    log.info("%d classes of %s are trained further, %d are new", len(classes) - len(new), warm_start.path, len(new))
    with torch.no_grad():
        # (K * C, D) to (K, C, D): the C sub-centres of a class are neighbouring rows.
        weight_KCD = centres.weight.view(len(classes), centres.per_class, -1)
        known_KCD = warm_start.head.centre_RD.view(len(number_of), centres.per_class, -1)
        for number, name in enumerate(classes):
            if name in number_of:
                weight_KCD[number] = known_KCD[number_of[name]]
        if not new:
            return
        # The first images of each new class; M of them can be decoded.
        images = np.concatenate([np.flatnonzero(class_of_image == number)[:IMAGES_PER_NEW_CENTRE] for number in new])
        embedding_MD, position_M = embed_files(
            model, [files[image] for image in images], batch_size=32, workers=workers, device="cpu", precision="fp32"
        )
        class_M = class_of_image[images[position_M]]
        # A step turns a long centre less than a short one: new ones must learn as fast as the known ones.
        length = warm_start.head.centre_RD.norm(dim=1).mean()  # new centres are as long as the known ones
        for number in new:
            # A class of which no image can be decoded keeps its random centre.
            if (of_class := class_M == number).any():
                mean_D = torch.from_numpy(embedding_MD[of_class].mean(axis=0))
                spread_CD = 0.1 * length * F.normalize(weight_KCD[number], dim=1)  # centres of one class start apart
                weight_KCD[number] = length * F.normalize(mean_D, dim=0) + (spread_CD if centres.per_class > 1 else 0.0)


def log_space_change(warm_start: WarmStart, space_id: str) -> None:
    """Logs whether embeddings made with the earlier teacher can still be searched."""
    if space_id == warm_start.space_id:
        log.info("space %s of %s is kept: stored embeddings stay valid", space_id, warm_start.path)
    else:
        log.warning(
            "space %s becomes %s: embed again what was embedded with %s", warm_start.space_id, space_id, warm_start.path
        )
