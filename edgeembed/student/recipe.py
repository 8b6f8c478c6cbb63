"""The keys of a distillation recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgeembed.config import AugmentSection, EvalSection, ImageSection, OptimSection, Section, TrainSection


class StudentSection(Section):
    """The network: an alias or a timm name; `weights` is `auto`, `pretrained`, `none`, or a file."""

    name: str = "mobilenetv4_s"
    weights: str = "auto"
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)


class LossSection(Section):
    """Weights of the loss terms: RAML's, and KL over the teacher's class centres where it has any."""

    cosine: float = Field(default=1.0, ge=0.0)
    cross_relation: float = Field(default=0.75, ge=0.0)
    self_relation: float = Field(default=0.68, ge=0.0)
    centre_kl: float = Field(default=0.0, ge=0.0)
    centre_temperature: float = Field(default=0.07, gt=0.0)


class TargetSection(Section):
    """The teacher's side: each image has `views` views that recur, and the teacher sees each of them once."""

    views: int = Field(default=50, ge=1)
    precision: Literal["bf16", "fp32"] = "bf16"


class DistillRecipe(Section):
    """Everything that decides a distillation run."""

    description: str = ""
    student: StudentSection = StudentSection()
    loss: LossSection = LossSection()
    targets: TargetSection = TargetSection()
    image: ImageSection = ImageSection()
    augment: AugmentSection = AugmentSection()
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
