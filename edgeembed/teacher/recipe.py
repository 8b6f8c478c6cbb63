"""The keys of a teacher recipe, and its stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from edgeembed.config import (
    AugmentSection,
    EvalSection,
    ImageSection,
    MarginKind,
    MixSection,
    OptimSection,
    Section,
    TrainSection,
    validate,
)
from edgeembed.errors import UserError, unknown_choice
from edgeembed.model_json import Pooling
from edgeembed.recipe_keys import flatten, known_keys


class BackboneSection(Section):
    """The backbone: `weights` is an open_clip tag, `pretrained` (timm), a file, or `none`.

    `pooling: gem` replaces the default pooling of a convolutional network by generalised-mean pooling;
    `output_stride: 16` leaves out the last halving of its feature map (Luo et al. 2019). `blocks` cuts the network
    after its first blocks. A frozen backbone, or its first blocks, computes as in evaluation; `frozen_batch_norm` keeps
    the statistics of batch norm as they are. With `stored_views` the features of a frozen backbone are computed once,
    and training takes seconds.
    """

    name: str = Field(default="ViT-H-14", description="an open_clip or timm model")
    weights: str = Field(
        default="laion2b_s32b_b79k",
        description="where training starts: an open_clip tag, pretrained (timm), a file, or none for random weights",
    )
    pooling: Pooling = Field(
        default="default",
        description="default: as the model pools; gem: generalised mean, for convolutional timm models",
    )
    output_stride: Literal[8, 16, 32] | None = Field(
        default=None,
        description="stride of the last feature map in pixels (convolutional timm models); null: the model's default",
    )
    blocks: int | None = Field(
        default=None,
        ge=1,
        description="keep only the first N blocks of the network (vision transformers) or groups of blocks "
        "(EfficientNet and MobileNetV3 families); null: all",
    )
    frozen: bool = Field(default=False, description="freeze the backbone: do not train its weights")
    stored_views: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="views of each image whose features are computed once and stored, with frozen: true; null: views "
        "are rendered and computed at every step",
    )
    frozen_blocks: int = Field(default=0, ge=0, description="number of first blocks of the backbone that are frozen")
    frozen_batch_norm: bool = Field(default=False, description="freeze the running statistics of batch norm")


class NeckSection(Section):
    """Dropout -> Linear -> (BatchNorm) -> L2."""

    # Dropout, dimensions and no batch norm: Huang & Li 2022. The challenge allowed at most 64 dimensions.
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0, description="dropout rate on the backbone's features")
    dim: int = Field(default=64, ge=2, le=4096, description="embedding dimensions")
    batch_norm: bool = Field(default=False, description="batch norm after the projection")
    frozen: bool = Field(default=False, description="freeze the neck: do not train its weights")


class HeadSection(Section):
    """The margin starts at `margin` (radians for arcface) and grows with every epoch of a stage up to `margin_max`.

    `class_margins: [smallest, largest]` replaces `margin` by one margin per class: rare classes get larger ones.
    """

    kind: MarginKind = Field(default="arcface", description="margin loss")
    # Margin and scale as in the code of Huang & Li 2022, 2nd place of Google Universal Image Embedding.
    margin: float = Field(
        default=0.3,
        ge=0.0,
        lt=1.57,
        description="margin at the start: an angle in radians for arcface, a cosine for cosface",
    )
    margin_growth_per_epoch: float = Field(default=0.0, ge=0.0, description="increase of the margin per epoch")
    margin_max: float | None = Field(default=None, ge=0.0, lt=1.57, description="largest margin; null: no limit")
    class_margins: tuple[float, float] | None = Field(
        default=None,
        description="smallest and largest margin, by the frequency of the class, in place of margin; null: one for all",
    )
    scale: float = Field(default=30.0, gt=0.0, description="factor of the cosines before softmax")
    centres_per_class: int = Field(default=1, ge=1, le=16, description="sub-centres of a class")
    sample_rate: float = Field(
        default=1.0, gt=0.0, le=1.0, description="share of the class centres that each step samples (Partial FC)"
    )
    frozen: bool = Field(default=False, description="freeze the class centres")


class PreserveSection(Section):
    """A second loss that keeps the general knowledge of the network that training starts from.

    Images that are similar in the features of the starting network should stay similar in the embedding space. A frozen
    copy of that network computes the features of every view; with `backbone.stored_views`, the stored ones are used.
    """

    weight: float = Field(default=0.0, ge=0.0, description="weight of the loss; 0: not computed")
    temperature: float = Field(
        default=0.05, ge=1e-3, le=10.0, description="temperature of the similarities between the images of a batch"
    )


class SamplingSection(Section):
    """How often an epoch visits a class: at most `cap` of its images, and small classes `repeat_to` times."""

    cap: int | None = Field(
        default=None, ge=1, description="largest number of images of a class in an epoch; null: no limit"
    )
    repeat_to: int = Field(
        default=1, ge=1, description="images of a smaller class are repeated up to this number per epoch"
    )


class InferenceSection(Section):
    """Test-time augmentation: whose embeddings evaluation, and every use of the finished teacher, averages."""

    flip: bool = Field(default=False, description="average with the embedding of the mirrored image")
    scales: tuple[float, ...] = Field(
        default=(1.0,), min_length=1, description="sizes to average over, as multiples of size_px"
    )


class TeacherRecipe(Section):
    """Everything that decides a teacher run.

    A recipe may list stages, trained one after the other with a fresh optimiser each. A stage has a name and the keys
    in which it differs from the recipe, out of `STAGE_KEYS`.
    """

    description: str = Field(default="", description="free text")
    continue_from: str | None = Field(
        default=None,
        description="finished teacher run to start from (warm start, --from); null: start from backbone.weights",
    )
    backbone: BackboneSection = BackboneSection()
    neck: NeckSection = NeckSection()
    head: HeadSection = HeadSection()
    image: ImageSection = ImageSection()
    augment: AugmentSection = AugmentSection()
    mix: MixSection = MixSection()
    preserve: PreserveSection = PreserveSection()
    sampling: SamplingSection = SamplingSection()
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()
    inference: InferenceSection = InferenceSection()
    eval: EvalSection = EvalSection()
    stages: tuple[dict[str, Any], ...] = Field(
        default=(), description="keys that differ in each of several stages, trained one after the other"
    )

    @model_validator(mode="after")
    def _require_valid_stages(self) -> TeacherRecipe:
        """Reports a mistake in a stage when the recipe is read, not when the stage begins."""
        _, *later_stages = self.resolve_stages()
        for name, settings in later_stages:
            if settings.backbone.stored_views is not None:
                raise UserError(
                    f"stage {name!r}: backbone.stored_views = {settings.backbone.stored_views}: only the first stage "
                    "can train on stored features: set it to null in this stage"
                )
        return self

    @model_validator(mode="after")
    def _require_storable_views(self) -> TeacherRecipe:
        """Stored features are those of a backbone that stays as it is, and of views that do not depend on the step."""
        views = self.backbone.stored_views
        if views is None or self.stages:  # each stage is validated with its own values
            return self
        if not self.backbone.frozen:
            problem, remedy = "the features of a trained backbone change", "backbone.frozen to true"
        elif self.mix.mixes:
            problem, remedy = (
                "mixed images are new ones at every step",
                "mix.cutmix_probability and mixup_probability to 0",
            )
        elif self.image.view_px(0.0) != self.image.view_px():
            problem, remedy = "stored views have one size", "image.start_size_px to null"
        else:
            return self
        raise UserError(f"backbone.stored_views = {views}: {problem}: set {remedy}, or stored_views to null")

    def summary(self) -> str:
        """What a stage does, in one line of text."""
        lr = self.optim.lr
        if self.optim.decay_epochs is not None and not self.optim.warmup_epochs:
            # Stages may share one decay: this one begins at a point within it.
            lr *= self.optim.decay_factor(self.optim.decay_first_epoch / self.optim.decay_epochs)
        parts = {
            "backbone": (self.backbone.frozen, lr * self.optim.backbone_lr_factor),
            "neck": (self.neck.frozen, lr),
            "head": (self.head.frozen, lr * self.optim.head_lr_factor),
        }
        learning_rates = ", ".join(f"{name} {rate:.3g}" for name, (frozen, rate) in parts.items() if not frozen)
        epochs = "1 epoch" if self.train.epochs == 1 else f"{self.train.epochs} epochs"
        size = f"{self.image.size_px} x {self.image.size_px} pixels"
        if self.image.keep_aspect:
            size = f"the area of {size}, proportions kept"
        margin = f"{self.head.margin:g}"
        if self.head.class_margins:
            margin = "{:g} to {:g} by the size of the class".format(*self.head.class_margins)
        if self.head.margin_growth_per_epoch:
            margin += f", growing by {self.head.margin_growth_per_epoch:g} per epoch"
        return (
            f"{epochs}; images of {size}, batches of {self.train.batch_size * self.train.accumulate_steps}; learning "
            f"rates: {learning_rates}; {self.head.kind} margin {margin}"
        )

    def resolve_stages(self) -> list[tuple[str, TeacherRecipe]]:
        """Name and full recipe of each stage; a recipe without stages is its own, unnamed stage."""
        if not self.stages:
            return [("", self)]
        resolved = []
        for number, stage in enumerate(self.stages, start=1):
            changes = {key: value for key, value in stage.items() if key != "name"}
            name = str(stage.get("name", number))
            for key, _ in flatten(changes):
                if not key.startswith(STAGE_KEYS):
                    if key in known_keys(TeacherRecipe):
                        raise UserError(
                            f"stage {name!r}: {key!r} cannot differ between stages: set it outside the stages"
                        )
                    raise unknown_choice(f"key of stage {name!r}", key, known_keys(TeacherRecipe))
            values = merge(self.model_dump(exclude={"stages"}), changes)
            resolved.append((name, validate(TeacherRecipe, values, source=f"stage {name!r}")))
        return resolved


# Prefixes of the keys that need no other network, class centres or data.
STAGE_KEYS = (
    "augment.",
    "backbone.frozen",
    "backbone.stored_views",
    "head.class_margins",
    "head.frozen",
    "head.kind",
    "head.margin",
    "image.",
    "mix.",
    "neck.frozen",
    "optim.",
    "preserve.",
    "sampling.",
    "train.accumulate_steps",
    "train.batch_size",
    "train.epochs",
)


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` applied, group by group."""
    merged = dict(values)
    for key, change in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, change) if isinstance(old, Mapping) and isinstance(change, Mapping) else change
    return merged
