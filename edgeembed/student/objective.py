"""The loss of a distillation recipe: its terms, weighted, with what they need of the teacher beside the targets."""

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
from edgeembed.student.recipe import DistillRecipe, LossSection
from edgeembed.student.teachers import Teacher
from edgeembed.teacher.margin import margin_loss


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Class centres (K, D), anchors (M, D), and the class of each training image, -1 for none; None where not used."""

    section: LossSection
    centre_KD: Tensor | None
    anchor_MD: Tensor | None
    class_N: Rows | None

    def __call__(self, student_BD: Tensor, teacher_BD: Tensor, *, image_B: Rows) -> Tensor:
        """Mean over a batch; `image_B` numbers its training images."""
        section = self.section
        loss = section.cosine * cosine_loss(student_BD, teacher_BD)
        loss = loss + section.cross_relation * cross_relation_loss(student_BD, teacher_BD)
        loss = loss + section.self_relation * self_relation_loss(student_BD, teacher_BD)
        if section.standardised:
            loss = loss + section.standardised * standardised_loss(student_BD, teacher_BD)
        if self.centre_KD is not None and section.centre_kl:
            kl = anchor_kl_loss(student_BD, teacher_BD, self.centre_KD, temperature=section.centre_temperature)
            loss = loss + section.centre_kl * kl
        if self.anchor_MD is not None:
            kl = anchor_kl_loss(student_BD, teacher_BD, self.anchor_MD, temperature=section.anchor_temperature)
            loss = loss + section.anchor_kl * kl
        if self.centre_KD is not None and self.class_N is not None:
            labelled = np.flatnonzero(self.class_N[image_B] >= 0)
            if labelled.size:
                label_L = torch.from_numpy(self.class_N[image_B[labelled]]).to(student_BD.device)
                cosine_LK = student_BD[labelled] @ self.centre_KD.T
                labels = margin_loss(cosine_LK, label_L, margin=section.label_margin, scale=section.label_scale)
                loss = loss + section.label * labels * (labelled.size / image_B.size)
        return loss


def build_objective(recipe: DistillRecipe, manifest: Manifest, rows: Rows, teacher: Teacher, device: str) -> Objective:
    """Reads centres and classes, and asks the teacher for its anchors, where the recipe's weights want them.

    Raises UserError for centres that are not there, and for labels of images that are mixed.
    """
    section = recipe.loss
    if section.label and recipe.mix.mixes:
        raise UserError(f"loss.label = {section.label}: mixed images have no label: set it to 0, or mix.* to 0")
    centre_KD = class_N = anchor_MD = None
    if section.centre_kl or section.label:
        centre_KD = read_centres(teacher.path).to(device)
    if section.label:
        classes = read_json(teacher.path / "classes.json")["classes"]
        class_N = class_indices([(domain, label) for domain, label in classes], manifest, rows)
        if centre_KD is not None and len(centre_KD) != len(classes):
            raise UserError(f"{teacher.path}: {len(centre_KD)} centres for {len(classes)} classes: set loss.label=0")
    if section.anchor_kl:
        drawn = np.sort(np.random.default_rng(recipe.targets.seed).permutation(rows.size)[: section.anchors])
        with stage(f"embedding {drawn.size} anchors with the teacher"):
            embedding_MD, _ = teacher.embed(manifest, rows[drawn], recipe, device)
        if not len(embedding_MD):
            raise UserError(f"loss.anchor_kl: no teacher embedding of {drawn.size} training images: set it to 0")
        anchor_MD = torch.from_numpy(embedding_MD).to(device)
    return Objective(section=section, centre_KD=centre_KD, anchor_MD=anchor_MD, class_N=class_N)


def read_centres(teacher_path: Path) -> Tensor:
    """The teacher's class centres as unit vectors, (K, D)."""
    path = teacher_path / "head.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: no class centres, which loss.centre_kl and loss.label need: set them to 0")
    return F.normalize(dict(iterate_tensors(path))["centres"].float(), dim=1)
