"""The keys of a distillation recipe."""

from __future__ import annotations

from pathlib import Path

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
from edgeembed.errors import UserError

CLASS_CENTRES = "head.safetensors"
"""The file of a teacher's class centres, in its run folder."""


class StudentSection(Section):
    """The student network: an alias or a timm name; `weights` is `auto`, `pretrained`, `none`, or a file."""

    name: str = Field(default="mobilenetv4_s", description="an alias (`edgeembed students` lists them) or a timm model")
    weights: str = Field(
        default="auto",
        description="where training starts: auto (pretrained where they are available), pretrained, a file, none",
    )
    blocks: int | None = Field(
        default=None,
        ge=1,
        description="keep only the first N blocks of the network (vision transformers) or groups of blocks "
        "(EfficientNet and MobileNetV3 families); null: those of the alias, else all",
    )
    attention_blocks: int | None = Field(
        default=None,
        ge=1,
        description="add N transformer blocks with random weights behind the convolutions of the network (EfficientNet "
        "and MobileNetV3 families); null: those of the alias, else none",
    )
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="dropout rate on the backbone's features")
    frozen_batch_norm: bool = Field(
        default=False, description="freeze the running statistics of batch norm, as suits pretrained weights"
    )


class LossSection(Section):
    """Weights of the loss terms; a term with weight 0 is not computed.

    The first three are RAML's. `standardised` is a regression on standardised dimensions. `centre_kl` and `anchor_kl`
    compare similarities to the teacher's class centres and to its embeddings of training images. `label` is a margin
    loss to the teacher's class centres, for images whose class the teacher knows.
    """

    # The first three weights are RAML's on Stanford Online Products.
    cosine: float = Field(default=1.0, ge=0.0, description="weight of the cosine distance to the teacher's embedding")
    cross_relation: float = Field(
        default=0.75, ge=0.0, description="weight of the similarities between student and teacher embeddings of a batch"
    )
    self_relation: float = Field(
        default=0.68, ge=0.0, description="weight of the similarities among the student embeddings of a batch"
    )
    standardised: float = Field(default=0.0, ge=0.0, description="weight of the regression on standardised dimensions")
    centre_kl: float = Field(
        default=0.0, ge=0.0, description="weight of the KL divergence over the teacher's class centres"
    )
    centre_temperature: float = Field(default=0.07, gt=0.0, description="temperature of centre_kl")
    anchor_kl: float = Field(
        default=0.0, ge=0.0, description="weight of the KL divergence over the teacher's embeddings of training images"
    )
    anchor_temperature: float = Field(default=0.07, gt=0.0, description="temperature of anchor_kl")
    anchors: int = Field(default=8192, ge=2, description="training images that anchor_kl compares with")
    label: float = Field(
        default=0.0, ge=0.0, description="weight of the margin loss to the teacher's class centres, for labelled images"
    )
    label_margin: float = Field(default=0.0, ge=0.0, description="margin of the label loss, in radians")
    label_scale: float = Field(default=30.0, gt=0.0, description="factor of the label loss's cosines before softmax")

    def require_class_centres(self, teacher: Path) -> None:
        """Raises UserError where a term needs class centres, and the teacher's folder has none."""
        needing = [f"loss.{key}" for key, weight in (("centre_kl", self.centre_kl), ("label", self.label)) if weight]
        if needing and not (teacher / CLASS_CENTRES).is_file():
            raise UserError(
                f"{teacher}: has no class centres ({CLASS_CENTRES}), which a teacher learns from labels and "
                f"{' and '.join(needing)} of the recipe needs: add {' '.join(f'--set {key}=0' for key in needing)}"
            )


class TargetSection(Section):
    """The teacher's embeddings: each image has `views` views that recur, and the teacher embeds each of them once.

    `store` is where the embeddings are kept for this and other students: a folder, `auto` (below the teacher's run, if
    views recur or a store exists already), or `none` (they are computed each time). Views have a seed of their own, so
    that students with other seeds share them. `precision` auto: that of an existing store, else what the device
    computes natively. `key` says when an image counts as changed, so that its targets are computed again: `stat`, if
    its size or modification time changed, or `content`, if its bytes did (all images are read first).
    """

    # 1, 4, 16 and 50 views gave mAP .086, .267, .413 and .420 (benchmarks/results/distil_table.md).
    views: int = Field(
        default=50, ge=1, description="augmented views of an image that recur, each embedded once by the teacher"
    )
    seed: int = Field(default=0, ge=0, description="seed of the views")
    precision: Precision = Field(
        default="auto",
        description="precision of the teacher; auto: that of an existing store, else what the device computes natively",
    )
    store: str = Field(
        default="auto",
        description="folder of the stored targets; auto: below the teacher's run; none: compute them each time",
    )
    key: ImageKey = Field(
        default="stat",
        description="an image counts as changed when its size or modification time did (stat) or its bytes (content)",
    )


class DistillRecipe(Section):
    """Everything that decides a distillation run."""

    description: str = Field(default="", description="free text")
    student: StudentSection = StudentSection()
    loss: LossSection = LossSection()
    targets: TargetSection = TargetSection()
    image: ImageSection = ImageSection()
    augment: AugmentSection = AugmentSection()
    mix: MixSection = MixSection()
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
