"""The keys of a teacher recipe."""

from __future__ import annotations

from pydantic import Field

from edgeembed.config import AugmentSection, EvalSection, ImageSection, OptimSection, Section, TrainSection


class BackboneSection(Section):
    """The tower: `weights` is an open_clip tag, `pretrained` (timm), a file, or `none`."""

    name: str = "ViT-H-14"
    weights: str = "laion2b_s32b_b79k"
    freeze_from_epoch: int | None = Field(default=None, ge=0)


class NeckSection(Section):
    """Dropout -> Linear -> L2."""

    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    dim: int = Field(default=64, ge=2, le=4096)


class HeadSection(Section):
    """ArcFace; the margin, in radians, starts at `margin` and grows every epoch up to `margin_max`."""

    margin: float = Field(default=0.3, ge=0.0, lt=1.57)
    margin_growth_per_epoch: float = Field(default=0.0, ge=0.0)
    margin_max: float | None = Field(default=None, ge=0.0, lt=1.57)
    scale: float = Field(default=30.0, gt=0.0)


class TeacherRecipe(Section):
    """Everything that decides a teacher run."""

    description: str = ""
    backbone: BackboneSection = BackboneSection()
    neck: NeckSection = NeckSection()
    head: HeadSection = HeadSection()
    image: ImageSection = ImageSection()
    augment: AugmentSection = AugmentSection()
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
