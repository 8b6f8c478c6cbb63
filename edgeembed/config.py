"""Typed recipes: defaults < recipe file < `--set a.b=c`; an unknown key is refused with the nearest known one."""

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

GROWING_SHARE = 0.75  # of a run, while its views grow


class Section(BaseModel):
    """A frozen group of recipe keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageSection(Section):
    """What the network sees: squares of `size_px`, cut from decoded squares of `canvas_factor` times that.

    Convolutional networks may train on smaller views (`train_size_px`): crops enlarge things, so the larger test
    size restores the sizes seen in training, and a step costs less (Touvron et al. 2019, FixRes). Their views may
    also start at `start_size_px` and grow over the first three quarters of the run (Tan & Le 2021). No view is larger
    than `size_px`, so that one key makes all of them smaller.
    """

    size_px: int = Field(
        default=224, ge=16, le=2048, description="side of the network's input in pixels, for evaluation and use"
    )
    train_size_px: int | None = Field(
        default=None, ge=16, le=2048, description="side of the training views; null: size_px"
    )
    start_size_px: int | None = Field(
        default=None,
        ge=16,
        le=2048,
        description="side of the first training views, which grow over three quarters of the run; null: no growth",
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
        description="distance of a transformer's patches in pixels, so that they overlap; null: the patch size",
    )
    keep_aspect: bool = Field(default=False, description="keep the proportions of images instead of making them square")

    def view_px(self, progress: float = 1.0) -> int:
        """Side of the training views when `progress` (0..1) of the run is done, in steps of 16 pixels."""
        last = min(self.train_size_px or self.size_px, self.size_px)
        first = min(self.start_size_px or last, last)
        if progress >= GROWING_SHARE:
            return last
        return first + int(progress / GROWING_SHARE * (last - first)) // 16 * 16


class AugmentSection(Section):
    """Ranges that each view is drawn from; the defaults leave the image as it is."""

    scale: tuple[float, float] = Field(
        default=(1.0, 1.0), description="smallest and largest share of the image's area that a view keeps"
    )
    aspect: tuple[float, float] = Field(
        default=(1.0, 1.0), description="width over height of the crop, relative to the image: smallest and largest"
    )
    crop_side: tuple[float, float] | None = Field(
        default=None,
        description="smallest and largest side of the crop, as a multiple of the image's side; above 1 the view shows "
        "a border; replaces scale and aspect; null: they decide",
    )
    crop_per_axis: bool = Field(default=False, description="draw crop_side separately for width and height")
    crop_probability: float = Field(default=1.0, ge=0.0, le=1.0, description="share of the views that are cropped")
    border: Literal["reflect", "black"] = Field(
        default="reflect", description="what a view shows beyond the edge of its image"
    )
    rotation_degrees: float = Field(default=0.0, ge=0.0, le=180.0, description="largest rotation, either way")
    shear_degrees: float = Field(default=0.0, ge=0.0, le=45.0, description="largest shear, either way")
    affine_probability: float = Field(
        default=1.0, ge=0.0, le=1.0, description="share of the views that are rotated and sheared"
    )
    flip_probability: float = Field(
        default=0.5, ge=0.0, le=1.0, description="share of the views that are mirrored left to right"
    )
    brightness: float = Field(default=0.0, ge=0.0, lt=1.0, description="largest relative change of brightness")
    contrast: float = Field(default=0.0, ge=0.0, lt=1.0, description="largest relative change of contrast")
    saturation: float = Field(default=0.0, ge=0.0, lt=1.0, description="largest relative change of saturation")
    colour_probability: float = Field(
        default=1.0, ge=0.0, le=1.0, description="share of the views whose brightness, contrast and saturation change"
    )
    drop_square_probability: float = Field(
        default=0.0, ge=0.0, le=1.0, description="share of the views in which a square is erased (random erasing)"
    )
    drop_square_side: tuple[float, float] = Field(
        default=(0.1, 0.2), description="side of the erased square as a share of the view's: smallest and largest"
    )

    @model_validator(mode="after")
    def _require_one_crop(self) -> AugmentSection:
        if self.crop_side is not None and (self.scale, self.aspect) != ((1.0, 1.0), (1.0, 1.0)):
            raise UserError(
                f"augment.crop_side = {list(self.crop_side)}: replaces augment.scale and augment.aspect: "
                "set those to [1, 1], or crop_side to null"
            )
        if self.crop_side is not None and not 0.0 < self.crop_side[0] <= self.crop_side[1]:
            raise UserError(
                f"augment.crop_side = {list(self.crop_side)}: expected two sides above 0, the smaller first"
            )
        return self


class MixSection(Section):
    """Pairs of training images made one: a square of the other pasted in (CutMix), or the two blended (mixup).

    A teacher counts each one's class by its share; a student learns the teacher's embedding of the mixed image.
    """

    cutmix_probability: float = Field(
        default=0.0, ge=0.0, le=1.0, description="share of the images that get a square of another one (CutMix)"
    )
    cutmix_side: tuple[float, float] = Field(
        default=(0.3, 0.7), description="side of that square as a share of the image's: smallest and largest"
    )
    mixup_probability: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="share of the images that are blended with another one (mixup); with CutMix at most 1 in all",
    )
    mixup_share: tuple[float, float] = Field(
        default=(0.0, 0.5), description="share of the other image in a blend: smallest and largest"
    )

    @property
    def mixes(self) -> bool:
        return self.cutmix_probability + self.mixup_probability > 0.0

    @model_validator(mode="after")
    def _require_probabilities(self) -> MixSection:
        if self.cutmix_probability + self.mixup_probability > 1.0:
            raise UserError(
                f"mix.cutmix_probability + mix.mixup_probability = {self.cutmix_probability + self.mixup_probability}: "
                "at most 1, an image is mixed in one way"
            )
        return self


class OptimSection(Section):
    """AdamW, SGD or Muon with a learning rate for each part: linear warm-up, then cosine or linear decay.

    Muon (Jordan et al. 2024) makes the update of a matrix orthogonal, in steps as large as AdamW's (Liu et al. 2025:
    the same `lr` serves both); vectors, depthwise convolutions and class centres are left to AdamW. `momentum` is
    SGD's; Muon's is 0.95.

    With `layer_decay` each block of the backbone gets the rate of the one above it times this factor.
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
        default=(0.9, 0.999), description="AdamW's decay of the mean gradient and of the mean squared gradient"
    )
    block_rows: int | None = Field(
        default=None,
        ge=4,
        description="rows of a block in which Muon makes larger matrices orthogonal; null: the whole matrix",
    )
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0, description="momentum of SGD")
    layer_decay: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="learning rate of each block of the backbone, as a multiple of the one above it",
    )
    warmup_epochs: float = Field(default=1.0, ge=0.0, description="epochs of linear warm-up")
    warmup_start_factor: float = Field(
        default=0.01, gt=0.0, le=1.0, description="learning rate at the start of the warm-up, as a multiple of lr"
    )
    decay: Literal["cosine", "linear"] = Field(default="cosine", description="form of the learning rate's decay")
    decay_epochs: float | None = Field(
        default=None,
        gt=0.0,
        description="length of the decay in epochs, counted from the start of the warm-up; null: from the end of the "
        "warm-up to the end of the stage",
    )
    decay_first_epoch: float = Field(
        default=0.0,
        ge=0.0,
        description="epochs of the decay that earlier stages have had; with the same decay_epochs in all of them, "
        "stages share one decay",
    )
    decay_by: Literal["step", "epoch"] = Field(
        default="step", description="whether the learning rate falls with every step or once an epoch"
    )
    final_lr_factor: float = Field(
        default=0.0, ge=0.0, le=1.0, description="learning rate at the end of the decay, as a multiple of lr"
    )

    def decay_factor(self, progress: float) -> float:
        """Factor on the learning rate after a share of the decay, 0 at its start; above 1 as at its end."""
        progress = min(1.0, progress)
        left = 1.0 - progress if self.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.final_lr_factor + (1.0 - self.final_lr_factor) * left


class TrainSection(Section):
    """Length, batch, numerics and safety of a run.

    `precision` auto: what the device computes natively, bf16 or, where it has no units for it, fp32 (CPUs) or fp16 with
    a scaled loss (NVIDIA GPUs before Ampere). `device` auto: cuda, else mps, else cpu.
    """

    batch_size: int = Field(default=32, ge=1, description="images in a forward pass")
    accumulate_steps: int = Field(default=1, ge=1, description="forward passes in an optimiser step")
    epochs: int = Field(default=1, ge=1, description="passes over the training images")
    max_steps: int | None = Field(
        default=None, ge=1, description="optimiser steps after which the run ends; null: no limit"
    )
    checkpoint_every_steps: int = Field(
        default=1000, ge=0, description="optimiser steps between checkpoints; 0: only when the run is stopped"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="newest checkpoints that are kept")
    seed: int = Field(default=0, ge=0, description="seed of weights, order and augmentation")
    precision: Precision = Field(
        default="auto", description="precision of the computation; auto: what the device computes natively"
    )
    clip_norm: float | None = Field(
        default=1.0, gt=0.0, description="largest norm of the gradient; null: gradients are not clipped"
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0.0,
        lt=1.0,
        description="decay of a moving average of the weights, which becomes the result; null: no average",
    )
    grad_checkpointing: bool = Field(
        default=False, description="compute activations again in the backward pass, to save memory"
    )
    workers: int = Field(default=2, ge=0, description="processes that decode images; 0: none beside the training")
    cache: Literal["auto", "always", "never"] = Field(
        default="auto", description="keep decoded images in memory; auto: where they fit"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or mps; auto: cuda, else mps, else cpu")


class EvalSection(Section):
    """Evaluation on the validation split."""

    every_steps: int | None = Field(
        default=None, ge=0, description="optimiser steps between evaluations; null: five times a run; 0: never"
    )
    batch_size: int = Field(default=64, ge=1, description="images in a forward pass of the evaluation")


RecipeT = TypeVar("RecipeT", bound=Section)


def recipe_folder(kind: str) -> Traversable:
    return resources.files("edgeembed") / "recipes" / kind


def recipe_names(kind: str) -> list[str]:
    """The bundled recipes of a kind ("teacher" or "student")."""
    return sorted(entry.name[:-5] for entry in recipe_folder(kind).iterdir() if entry.name.endswith(".yaml"))


def is_recipe_file(name: str) -> bool:
    """Whether a recipe is named by a path rather than by the name of a bundled one."""
    return name.lower().endswith((".yaml", ".yml")) or "/" in name or "\\" in name


def recipe_text(kind: str, name: str) -> str:
    """The text of a bundled recipe by name, or of a YAML file by path."""
    if is_recipe_file(name):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"recipe {name!r}: no such file")
        return read_text(path)
    if name not in recipe_names(kind):
        raise unknown_choice(f"{kind} recipe", name, recipe_names(kind), "(or the path of a .yaml file)")
    return (recipe_folder(kind) / f"{name}.yaml").read_text(encoding="utf-8")


def load_recipe(recipe_type: type[RecipeT], *, kind: str, name: str, overrides: Sequence[str] = ()) -> RecipeT:
    """Reads, overrides and validates a recipe. Raises UserError naming the key, the value and what was expected."""
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
    """An unknown group of keys, dotted down to its first value: an error names `trian.epochs`, not `trian`."""
    while isinstance(value, dict) and value:
        name, value = next(iter(value.items()))
        key = f"{key}.{name}"
    return key


def validate(recipe_type: type[RecipeT], values: dict[str, Any], *, source: str) -> RecipeT:
    try:
        return recipe_type.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
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
    """A resolved recipe as YAML, in the order of its definition."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
