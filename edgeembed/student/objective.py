"""The loss of a distillation recipe: the weighted sum of its terms, and what they need beside the targets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeembed.data.manifest import Manifest, Rows, class_indices
from edgeembed.errors import UserError
from edgeembed.files import read_json
from edgeembed.network.tensor_files import iterate_tensors
from edgeembed.progress import stage
from edgeembed.student.losses import (
    anchor_kl_loss,
    cosine_loss,
    cross_relation_loss,
    self_relation_loss,
    standardised_loss,
)
from edgeembed.student.recipe import CLASS_CENTRES, DistillRecipe, LossSection
from edgeembed.student.teachers import Teacher
from edgeembed.teacher.margin import margin_loss


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The weighted sum of the loss terms of a recipe.

    `centre_KD`: the teacher's class centres, for the terms `centre_kl` and `label`. `anchor_MD`: its embeddings of some
    training images, for `anchor_kl`. `class_N`: the class of each training image, -1 for none, for `label`. Each is
    None if its terms have weight 0.
    """

    section: LossSection
    centre_KD: Tensor | None
    anchor_MD: Tensor | None
    class_N: Rows | None

    def __call__(self, student_BD: Tensor, teacher_BD: Tensor, *, image_B: Rows) -> Tensor:
        """Returns the mean loss of a batch; `image_B`: the numbers of its training images."""
        section = self.section
        loss = 0.0 * student_BD.sum()  # so that the gradient is 0, not missing, when no term applies
        if section.cosine:
            loss = loss + section.cosine * cosine_loss(student_BD, teacher_BD)
        if section.cross_relation:
            loss = loss + section.cross_relation * cross_relation_loss(student_BD, teacher_BD)
        if section.self_relation:
            loss = loss + section.self_relation * self_relation_loss(student_BD, teacher_BD)
        if section.standardised:
            loss = loss + section.standardised * standardised_loss(student_BD, teacher_BD)
        if self.centre_KD is not None and section.centre_kl:
            kl = anchor_kl_loss(student_BD, teacher_BD, self.centre_KD, temperature=section.centre_temperature)
            loss = loss + section.centre_kl * kl
        if self.anchor_MD is not None and section.anchor_kl:
            kl = anchor_kl_loss(student_BD, teacher_BD, self.anchor_MD, temperature=section.anchor_temperature)
            loss = loss + section.anchor_kl * kl
        if self.centre_KD is not None and self.class_N is not None and section.label:
            loss = loss + self._weighted_label_loss(student_BD, self.centre_KD, self.class_N[image_B])
        return loss

    def _weighted_label_loss(self, student_BD: Tensor, centre_KD: Tensor, class_B: Rows) -> Tensor:
        """Returns the weighted margin loss of the labelled images, as a mean over the whole batch: others count 0."""
        labelled = np.flatnonzero(class_B >= 0)
        if not labelled.size:
            return student_BD.new_zeros(())
        label_L = torch.from_numpy(class_B[labelled]).to(student_BD.device)
        # L labelled images, K classes; both sides are unit vectors.
        cosine_LK = student_BD[labelled] @ centre_KD.T
        loss = margin_loss(cosine_LK, label_L, margin=self.section.label_margin, scale=self.section.label_scale)
        # From a mean over L images to one over the B images of the batch.
        return self.section.label * loss * (labelled.size / class_B.size)


def build_objective(recipe: DistillRecipe, manifest: Manifest, rows: Rows, teacher: Teacher, device: str) -> Objective:
    """Reads class centres and classes, and embeds anchors with the teacher, if the recipe's terms need them.

    Raises UserError for missing class centres, and if labels are used together with mixed images.
    """
    section = recipe.loss
    if section.label and recipe.mix.mixes:
        raise UserError(f"loss.label = {section.label}: mixed images have no label: set it to 0, or mix.* to 0")
    centre_KD = class_N = anchor_MD = None
    section.require_class_centres(teacher.path)
    if section.centre_kl or section.label:
        centre_KD = read_centres(teacher.path).to(device)
    if section.label:
        classes = read_json(teacher.path / "classes.json")["classes"]
        class_N = class_indices([(domain, label) for domain, label in classes], manifest, rows)
        # With sub-centres, a class has no single centre that the margin could apply to.
        if centre_KD is not None and len(centre_KD) != len(classes):
            raise UserError(f"{teacher.path}: {len(centre_KD)} centres for {len(classes)} classes: set loss.label=0")
    if section.anchor_kl:
        # Drawn with the seed of the targets: students with other seeds compare with the same anchors.
        drawn = np.sort(np.random.default_rng(recipe.targets.seed).permutation(rows.size)[: section.anchors])
        with stage(f"embedding {drawn.size} anchors with the teacher"):
            embedding_MD, _ = teacher.embed(manifest, rows[drawn], recipe, device)
        if not len(embedding_MD):
            raise UserError(f"loss.anchor_kl: no teacher embedding of {drawn.size} training images: set it to 0")
        anchor_MD = torch.from_numpy(embedding_MD).to(device)
    return Objective(section=section, centre_KD=centre_KD, anchor_MD=anchor_MD, class_N=class_N)


def read_centres(teacher_path: Path) -> Tensor:
    """Returns the teacher's class centres as unit vectors, (K, D)."""
    return F.normalize(dict(iterate_tensors(teacher_path / CLASS_CENTRES))["centres"].float(), dim=1)
