"""Typed recipes: defaults < recipe file < `--set a.b=c`; an unknown key is refused with the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeembed.errors import UserError, unknown_choice

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

    size_px: int = Field(default=224, ge=16, le=2048)
    train_size_px: int | None = Field(default=None, ge=16, le=2048)
    start_size_px: int | None = Field(default=None, ge=16, le=2048)
    canvas_factor: float = Field(default=1.25, ge=1.0, le=4.0)
    patch_stride: int | None = Field(default=None, ge=1)
    keep_aspect: bool = False

    def view_px(self, progress: float = 1.0) -> int:
        """Side of the training views when `progress` (0..1) of the run is done, in steps of 16 pixels."""
        last = min(self.train_size_px or self.size_px, self.size_px)
        first = min(self.start_size_px or last, last)
        if progress >= GROWING_SHARE:
            return last
        return first + int(progress / GROWING_SHARE * (last - first)) // 16 * 16


class AugmentSection(Section):
    """Ranges that each view is drawn from; the defaults leave the image as it is."""

    scale: tuple[float, float] = (1.0, 1.0)  # share of the image's area that is kept
    aspect: tuple[float, float] = (1.0, 1.0)  # width over height of the crop, relative to the image
    rotation_degrees: float = Field(default=0.0, ge=0.0, le=180.0)
    shear_degrees: float = Field(default=0.0, ge=0.0, le=45.0)
    affine_probability: float = Field(default=1.0, ge=0.0, le=1.0)
    flip_probability: float = Field(default=0.5, ge=0.0, le=1.0)
    brightness: float = Field(default=0.0, ge=0.0, lt=1.0)
    contrast: float = Field(default=0.0, ge=0.0, lt=1.0)
    saturation: float = Field(default=0.0, ge=0.0, lt=1.0)
    colour_probability: float = Field(default=1.0, ge=0.0, le=1.0)
    drop_square_probability: float = Field(default=0.0, ge=0.0, le=1.0)
    drop_square_side: tuple[float, float] = (0.1, 0.2)  # share of the image's side


class MixSection(Section):
    """Pairs of training images made one: a square of the other pasted in (CutMix), or the two blended (mixup).

    A teacher counts each one's class by its share; a student asks its teacher what the mixed image is.
    """

    cutmix_probability: float = Field(default=0.0, ge=0.0, le=1.0)
    cutmix_side: tuple[float, float] = (0.3, 0.7)  # share of the image's side
    mixup_probability: float = Field(default=0.0, ge=0.0, le=1.0)  # the two probabilities add up to at most 1
    mixup_share: tuple[float, float] = (0.0, 0.5)  # of the other image

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
    """AdamW, SGD or Muon with a rate for each part: linear warm-up, then a cosine or a line down.

    Muon (Jordan et al. 2024) makes the update of a matrix orthogonal, in steps as large as AdamW's (Liu et al. 2025:
    the same `lr` serves both); vectors, depthwise convolutions and class centres are left to AdamW. `momentum` is
    SGD's; Muon's is 0.95.

    With `layer_decay` each block of the backbone gets the rate of the one above it times this factor.
    """

    kind: Literal["adamw", "sgd", "muon"] = "adamw"
    lr: float = Field(default=1e-4, gt=0.0)
    backbone_lr_factor: float = Field(default=1.0, ge=0.0)
    head_lr_factor: float = Field(default=1.0, gt=0.0)
    weight_decay: float = Field(default=1e-5, ge=0.0)
    betas: tuple[float, float] = (0.9, 0.999)
    block_rows: int | None = Field(default=None, ge=4)  # Muon: larger matrices are orthogonalised in blocks of rows
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    layer_decay: float = Field(default=1.0, gt=0.0, le=1.0)
    warmup_epochs: float = Field(default=1.0, ge=0.0)
    warmup_start_factor: float = Field(default=0.01, gt=0.0, le=1.0)
    decay: Literal["cosine", "linear"] = "cosine"
    decay_epochs: float | None = Field(default=None, gt=0.0)  # None: the decay ends with the stage
    final_lr_factor: float = Field(default=0.0, ge=0.0, le=1.0)


class TrainSection(Section):
    """Length, batch, numerics and safety of a run.

    `precision` auto: what the device computes natively, bf16 or, where it has no units for it, fp32 (CPUs) or fp16 with
    a scaled loss (NVIDIA GPUs before Ampere). `device` auto: cuda, else mps, else cpu.
    """

    batch_size: int = Field(default=32, ge=1)
    accumulate_steps: int = Field(default=1, ge=1)
    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    checkpoint_every_steps: int = Field(default=1000, ge=0)  # 0: only when the run is stopped
    keep_checkpoints: int = Field(default=2, ge=1)
    seed: int = Field(default=0, ge=0)
    precision: Precision = "auto"
    clip_norm: float = Field(default=1.0, gt=0.0)
    ema_decay: float | None = Field(default=None, gt=0.0, lt=1.0)  # keep a running average of the weights instead
    grad_checkpointing: bool = False
    workers: int = Field(default=2, ge=0)
    cache: Literal["auto", "always", "never"] = "auto"  # hold decoded squares in memory
    device: str = "auto"


class EvalSection(Section):
    """Evaluation on the validation split."""

    every_steps: int | None = Field(default=None, ge=0)  # None: five times a run; 0: never
    batch_size: int = Field(default=64, ge=1)


RecipeT = TypeVar("RecipeT", bound=Section)


def recipe_folder(kind: str) -> Traversable:
    return resources.files("edgeembed") / "recipes" / kind


def recipe_names(kind: str) -> list[str]:
    """The bundled recipes of a kind ("teacher" or "student")."""
    return sorted(entry.name[:-5] for entry in recipe_folder(kind).iterdir() if entry.name.endswith(".yaml"))


def recipe_text(kind: str, name: str) -> str:
    """The text of a bundled recipe by name, or of a YAML file by path."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise UserError(f"recipe {name!r}: no such file")
        return path.read_text(encoding="utf-8")
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
        set_key(values, override)
    return validate(recipe_type, values, source=f"recipe {name!r}")


def set_key(values: dict[str, Any], override: str) -> None:
    """Applies one `a.b=c` to nested values; c is read as YAML."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set {override!r}: expected key=value, for example train.epochs=3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *parents, last = key.strip().split(".")
    target = values
    while parents:
        parent = parents.pop(0)
        child = target.setdefault(parent, {})
        if isinstance(child, list) and parents and parents[0].isdigit() and int(parents[0]) < len(child):
            child = child[int(parents.pop(0))]  # stages.0.train.epochs=3
        if not isinstance(child, dict):
            raise UserError(f"--set {override!r}: {parent!r} is a value, not a group of keys")
        target = child
    target[last] = value


def validate(recipe_type: type[RecipeT], values: dict[str, Any], *, source: str) -> RecipeT:
    try:
        return recipe_type.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(raised := first.get("ctx", {}).get("error"), UserError):
            raise UserError(f"{source}: {raised}") from None
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            nearest = difflib.get_close_matches(key, list(known_keys(recipe_type)), n=1, cutoff=0.3)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "`edgeembed recipes show NAME` lists the keys"
            raise UserError(f"{source}: unknown key {key!r}: {hint}") from None
        raise UserError(f"{source}: {key} = {first['input']!r}: {first['msg']}") from None


def known_keys(recipe_type: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a recipe type, dotted."""
    for name, field in recipe_type.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from known_keys(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def to_yaml(recipe: Section) -> str:
    """A resolved recipe as YAML, in the order of its definition."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
