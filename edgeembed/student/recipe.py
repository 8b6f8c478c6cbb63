"""The keys of a distillation recipe."""

from __future__ import annotations

from pydantic import Field

from edgeembed.config import (
    AugmentSection,
    EvalSection,
    ImageKey,
    ImageSection,
    MixSection,
    OptimSection,
    Precision,
    Section,
    TrainSection,
)


class StudentSection(Section):
    """The network: an alias or a timm name; `weights` is `auto`, `pretrained`, `none`, or a file."""

    name: str = "mobilenetv4_s"
    weights: str = "auto"
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)


class LossSection(Section):
    """Weights of the loss terms: RAML's three, regression on standardised axes, KL over anchors (the teacher's class
    centres, or its embeddings of training images), and a margin loss to the teacher's centres for images with one of
    its classes.
    """

    cosine: float = Field(default=1.0, ge=0.0)
    cross_relation: float = Field(default=0.75, ge=0.0)
    self_relation: float = Field(default=0.68, ge=0.0)
    standardised: float = Field(default=0.0, ge=0.0)
    centre_kl: float = Field(default=0.0, ge=0.0)
    centre_temperature: float = Field(default=0.07, gt=0.0)
    anchor_kl: float = Field(default=0.0, ge=0.0)
    anchor_temperature: float = Field(default=0.07, gt=0.0)
    anchors: int = Field(default=8192, ge=2)
    label: float = Field(default=0.0, ge=0.0)
    label_margin: float = Field(default=0.0, ge=0.0)
    label_scale: float = Field(default=30.0, gt=0.0)


class TargetSection(Section):
    """The teacher's side: each image has `views` views that recur, and the teacher sees each of them once.

    `store` is where its answers are kept for this and other students: a folder, `auto` (below the teacher's run, where
    views recur or a store is there already), or `none` (it is asked each time). Views are drawn from a seed of their
    own, so that students of several seeds share them. `precision` auto: that of a store which is there already, else
    what the device computes natively. `key` says when an image counts as changed, so that its targets are computed
    anew: stat where its size or modification time did, content where its bytes did (all of them are read first).
    """

    views: int = Field(default=50, ge=1)
    seed: int = Field(default=0, ge=0)
    precision: Precision = "auto"
    store: str = "auto"
    key: ImageKey = "stat"


class DistillRecipe(Section):
    """Everything that decides a distillation run."""

    description: str = ""
    student: StudentSection = StudentSection()
    loss: LossSection = LossSection()
    targets: TargetSection = TargetSection()
    image: ImageSection = ImageSection()
    augment: AugmentSection = AugmentSection()
    mix: MixSection = MixSection()
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
