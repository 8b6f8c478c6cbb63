"""Typed recipes, shared sections of their keys, and their loading: defaults < recipe file < `--set a.b=c`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeembed.errors import UserError, unknown_choice
from edgeembed.recipe_keys import known_keys, nearest_key, set_key
from edgeembed.texts import read_text

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

Precision: TypeAlias = Literal["auto", "bf16", "fp16", "fp32"]
ImageKey: TypeAlias = Literal["stat", "content"]
MarginKind: TypeAlias = Literal["arcface", "cosface", "normface"]

GROWTH_SHARE = 0.75  # training views grow during this share of the run


class Section(BaseModel):
    """A frozen group of recipe keys; unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ImageSection(Section):
    """Image sizes. Training views are cut from canvases: decoded squares of `canvas_factor` times the view's side.

    Convolutional networks may train on smaller views (`train_size_px`): random crops enlarge objects, so a larger size
    in evaluation restores the object sizes of training, and a training step costs less (Touvron et al. 2019, FixRes).
    Views may also start at `start_size_px` and grow during the first three quarters of the run (Tan & Le 2021). No view
    is larger than `size_px`, so that one key makes all of them smaller.
    """

    size_px: int = Field(
        default=224, ge=16, le=2048, description="side of the network's input in pixels, in evaluation and inference"
    )
    train_size_px: int | None = Field(
        default=None, ge=16, le=2048, description="side of the training views; null: size_px"
    )
    start_size_px: int | None = Field(
        default=None,
        ge=16,
        le=2048,
        description="side of the first training views, which grow during three quarters of the run; null: no growth",
    )
    canvas_factor: float = Field(
        default=1.25,
        ge=1.0,
        le=4.0,
        description="side of the decoded squares that views are cut from, as a multiple of the view's side",
    )
    patch_stride: int | None = Field(
        default=None,
        ge=1,
        description="distance of a transformer's patches in pixels, which may overlap; null: the patch size",
    )
    keep_aspect: bool = Field(
        default=False, description="keep the proportions of images instead of resizing them to squares"
    )

    def view_px(self, progress: float = 1.0) -> int:
        """Side of the training views after a share `progress` (0..1) of the run; it grows in steps of 16 pixels."""
        last = min(self.train_size_px or self.size_px, self.size_px)
        first = min(self.start_size_px or last, last)
        if progress >= GROWTH_SHARE:
            return last
        return first + int(progress / GROWTH_SHARE * (last - first)) // 16 * 16


class AugmentSection(Section):
    """Augmentation: ranges from which the parameters of each view are drawn. By default views are only mirrored."""

    scale: tuple[float, float] = Field(
        default=(1.0, 1.0), description="smallest and largest share of the image's area that a view keeps"
    )
    aspect: tuple[float, float] = Field(
        default=(1.0, 1.0),
        description="smallest and largest aspect ratio (width over height) of the crop, relative to the image",
    )
    crop_side: tuple[float, float] | None = Field(
        default=None,
        description="smallest and largest side of the crop, as a multiple of the image's side; above 1 the view has a "
        "border; replaces scale and aspect; null: scale and aspect are used",
    )
    crop_per_axis: bool = Field(default=False, description="draw crop_side separately for width and height")
    crop_probability: float = Field(default=1.0, ge=0.0, le=1.0, description="share of the views that are cropped")
    border: Literal["reflect", "black"] = Field(
        default="reflect", description="pixels of a view beyond the edge of its image: the image mirrored, or black"
    )
    rotation_degrees: float = Field(
        default=0.0, ge=0.0, le=180.0, description="largest rotation in either direction, in degrees"
    )
    shear_degrees: float = Field(
        default=0.0, ge=0.0, le=45.0, description="largest shear in either direction, in degrees"
    )
    affine_probability: float = Field(
        default=1.0, ge=0.0, le=1.0, description="share of the views that are rotated and sheared"
    )
    flip_probability: float = Field(
        default=0.5, ge=0.0, le=1.0, description="share of the views that are mirrored left to right"
    )
    brightness: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="largest relative change of brightness, up or down"
    )
    contrast: float = Field(default=0.0, ge=0.0, lt=1.0, description="largest relative change of contrast, up or down")
    saturation: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="largest relative change of saturation, up or down"
    )
    colour_probability: float = Field(
        default=1.0, ge=0.0, le=1.0, description="share of the views whose brightness, contrast and saturation change"
    )
    drop_square_probability: float = Field(
        default=0.0, ge=0.0, le=1.0, description="share of the views in which a square is erased (random erasing)"
    )
    drop_square_side: tuple[float, float] = Field(
        default=(0.1, 0.2), description="smallest and largest side of the erased square, as a share of the view's side"
    )

    @model_validator(mode="after")
    def _require_one_crop(self) -> AugmentSection:
        if self.crop_side is not None and (self.scale, self.aspect) != ((1.0, 1.0), (1.0, 1.0)):
            raise UserError(
                f"augment.crop_side = {list(self.crop_side)}: replaces augment.scale and augment.aspect: "
                "set both to [1, 1], or crop_side to null"
            )
        if self.crop_side is not None and not 0.0 < self.crop_side[0] <= self.crop_side[1]:
            raise UserError(
                f"augment.crop_side = {list(self.crop_side)}: expected two sides above 0, the smaller first"
            )
        return self


class MixSection(Section):
    """Mixing of two training images: a square of the other image is pasted in (CutMix), or both are blended (mixup).

    A teacher's loss weights the two classes by their shares of the image; a student learns the teacher's embedding of
    the mixed image.
    """

    cutmix_probability: float = Field(
        default=0.0, ge=0.0, le=1.0, description="share of the images that get a square of another one (CutMix)"
    )
    cutmix_side: tuple[float, float] = Field(
        default=(0.3, 0.7), description="smallest and largest side of that square, as a share of the image's side"
    )
    mixup_probability: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="share of the images that are blended with another one (mixup); with cutmix_probability at most 1",
    )
    mixup_share: tuple[float, float] = Field(
        default=(0.0, 0.5), description="smallest and largest weight of the other image in a blend"
    )

    @property
    def mixes(self) -> bool:
        """Whether any image is mixed."""
        return self.cutmix_probability + self.mixup_probability > 0.0

    @model_validator(mode="after")
    def _require_probabilities(self) -> MixSection:
        if self.cutmix_probability + self.mixup_probability > 1.0:
            raise UserError(
                f"mix.cutmix_probability + mix.mixup_probability = {self.cutmix_probability + self.mixup_probability}: "
                "at most 1, because an image is mixed in one way only"
            )
        return self


class OptimSection(Section):
    """The optimiser and its learning rates: linear warm-up, then cosine or linear decay.

    Muon (Jordan et al. 2024) orthogonalises the update of each matrix and scales it to the size of AdamW's updates, so
    that the same `lr` suits both (Liu et al. 2025). Vectors, depthwise convolutions and class centres are trained with
    AdamW. `momentum` is SGD's; Muon's is 0.95.

    `layer_decay`: each block of the backbone has the learning rate of the block after it times this factor.
    """

    kind: Literal["adamw", "sgd", "muon"] = Field(default="adamw", description="optimiser")
    lr: float = Field(default=1e-4, gt=0.0, description="learning rate after the warm-up")
    backbone_lr_factor: float = Field(
        default=1.0, ge=0.0, description="learning rate of the backbone, as a multiple of lr"
    )
    head_lr_factor: float = Field(
        default=1.0, gt=0.0, description="learning rate of the class centres, as a multiple of lr"
    )
    weight_decay: float = Field(default=1e-5, ge=0.0, description="decoupled weight decay")
    betas: tuple[float, float] = Field(
        default=(0.9, 0.999), description="AdamW's decay rates of the mean gradient and of the mean squared gradient"
    )
    block_rows: int | None = Field(
        default=None,
        ge=4,
        description="rows of the blocks in which Muon orthogonalises a larger matrix; null: the whole matrix at once",
    )
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0, description="momentum of SGD")
    layer_decay: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="learning rate of each block of the backbone, as a multiple of the next block's",
    )
    warmup_epochs: float = Field(default=1.0, ge=0.0, description="epochs of linear warm-up")
    warmup_start_factor: float = Field(
        default=0.01, gt=0.0, le=1.0, description="learning rate at the start of the warm-up, as a multiple of lr"
    )
    decay: Literal["cosine", "linear"] = Field(default="cosine", description="shape of the learning rate's decay")
    decay_epochs: float | None = Field(
        default=None,
        gt=0.0,
        description="length of the decay in epochs, counted from the start of the warm-up; null: the decay lasts from "
        "the end of the warm-up to the end of the stage",
    )
    decay_first_epoch: float = Field(
        default=0.0,
        ge=0.0,
        description="epochs of the decay that earlier stages have used; stages with equal decay_epochs share one decay",
    )
    decay_by: Literal["step", "epoch"] = Field(
        default="step", description="how often the learning rate falls: every step, or once an epoch"
    )
    final_lr_factor: float = Field(
        default=0.0, ge=0.0, le=1.0, description="learning rate at the end of the decay, as a multiple of lr"
    )

    def decay_factor(self, progress: float) -> float:
        """Factor on the learning rate after a share `progress` of the decay, 0 at its start; above 1, as at its end."""
        progress = min(1.0, progress)
        left = 1.0 - progress if self.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.final_lr_factor + (1.0 - self.final_lr_factor) * left


class TrainSection(Section):
    """Length, batch size, precision, checkpoints and data loading of a run.

    `precision` auto: bf16 where the device computes it natively, else fp32 (CPUs) or fp16 with loss scaling (NVIDIA
    GPUs before Ampere).
    """

    batch_size: int = Field(default=32, ge=1, description="images per forward pass")
    accumulate_steps: int = Field(
        default=1, ge=1, description="forward passes per optimiser step (gradient accumulation)"
    )
    epochs: int = Field(default=1, ge=1, description="passes over the training images")
    max_steps: int | None = Field(
        default=None, ge=1, description="optimiser steps after which the run ends; null: no limit"
    )
    checkpoint_every_steps: int = Field(
        default=1000, ge=0, description="optimiser steps between checkpoints; 0: only when the run is stopped"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="number of newest checkpoints to keep")
    seed: int = Field(default=0, ge=0, description="random seed of weights, order of images and augmentation")
    precision: Precision = Field(
        default="auto",
        description="precision of the computation; auto: bf16 where the device computes it natively, else fp16 or fp32",
    )
    clip_norm: float | None = Field(
        default=1.0,
        gt=0.0,
        description="largest norm of the gradient (gradient clipping); null: gradients are not clipped",
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0.0,
        lt=1.0,
        description="decay of the moving average of the weights (EMA), which is saved as the result; null: no EMA",
    )
    grad_checkpointing: bool = Field(
        default=False, description="gradient checkpointing: recompute activations in the backward pass to save memory"
    )
    workers: int = Field(default=2, ge=0, description="processes that decode images; 0: the training process decodes")
    cache: Literal["auto", "always", "never"] = Field(
        default="auto", description="keep decoded images in memory; auto: where they fit and are used more than once"
    )
    device: str = Field(
        default="auto", description="auto, cpu, cuda or mps; auto: the first of cuda, mps and cpu that exists"
    )


class EvalSection(Section):
    """Evaluation on the validation split."""

    every_steps: int | None = Field(
        default=None,
        ge=0,
        description="optimiser steps between evaluations; null: five evaluations per run; 0: none",
    )
    batch_size: int = Field(default=64, ge=1, description="images per forward pass of the evaluation")


RecipeT = TypeVar("RecipeT", bound=Section)


def recipe_folder(kind: str) -> Traversable:
    """The folder of the bundled recipes of a kind ("teacher", "student" or "export")."""
    return resources.files("edgeembed") / "recipes" / kind


def recipe_names(kind: str) -> list[str]:
    """Names of the bundled recipes of a kind, sorted."""
    return sorted(entry.name[:-5] for entry in recipe_folder(kind).iterdir() if entry.name.endswith(".yaml"))


def is_recipe_file(name: str) -> bool:
    """Whether `name` is the path of a recipe file rather than the name of a bundled recipe."""
    return name.lower().endswith((".yaml", ".yml")) or "/" in name or "\\" in name


def recipe_text(kind: str, name: str) -> str:
    """The YAML text of a bundled recipe, by its name, or of a recipe file, by its path."""
    if is_recipe_file(name):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"recipe {name!r}: no such file")
        return read_text(path)
    if name not in recipe_names(kind):
        raise unknown_choice(f"{kind} recipe", name, recipe_names(kind), "(or the path of a .yaml file)")
    return (recipe_folder(kind) / f"{name}.yaml").read_text(encoding="utf-8")


def load_recipe(recipe_type: type[RecipeT], *, kind: str, name: str, overrides: Sequence[str] = ()) -> RecipeT:
    """Reads a recipe, applies the overrides and validates it.

    Raises UserError that names the key, its value and what is expected; for an unknown key, the nearest known one.
    """
    try:
        values = yaml.safe_load(recipe_text(kind, name)) or {}
    except yaml.YAMLError as error:
        raise UserError(f"recipe {name!r}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise UserError(f"recipe {name!r}: expected keys and values, found {type(values).__name__}")
    for override in overrides:
        set_key(values, override, recipe_type)
    return validate(recipe_type, values, source=f"recipe {name!r}")


def first_leaf(key: str, value: Any) -> str:
    """The dotted key of the first value in an unknown group, so that an error names `trian.epochs`, not `trian`."""
    while isinstance(value, dict) and value:
        name, value = next(iter(value.items()))
        key = f"{key}.{name}"
    return key


def validate(recipe_type: type[RecipeT], values: dict[str, Any], *, source: str) -> RecipeT:
    """Validates nested values as a recipe. Raises UserError that names `source`, the key and the value."""
    try:
        return recipe_type.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]  # one mistake at a time, in one line
        # A validator of ours names its keys itself.
        if isinstance(raised := first.get("ctx", {}).get("error"), UserError):
            raise UserError(f"{source}: {raised}") from None
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            key = first_leaf(key, first["input"])
            nearest = nearest_key(key, known_keys(recipe_type))
            hint = f"did you mean {nearest!r}?" if nearest else "`edgeembed recipes show NAME` lists the keys"
            raise UserError(f"{source}: unknown key {key!r}: {hint}") from None
        raise UserError(f"{source}: {key} = {first['input']!r}: {first['msg']}") from None


def to_yaml(recipe: Section) -> str:
    """A resolved recipe as YAML, with the keys in the order of their definition."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
