"""Image towers: any open_clip visual tower without its projection, or any timm model without its classifier."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from torch import Tensor, nn

from edgeembed.checkpoint import iterate_tensors
from edgeembed.errors import UserError

log = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UNREACHABLE = (OSError, RuntimeError, ValueError)  # what the hub clients raise without a network or for a wrong tag


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A tower that maps normalised (B, 3, H, W) to (B, dim), and the constants that it was made for."""

    module: nn.Module
    dim: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def library_of(name: str) -> str:
    """ "open_clip" or "timm", by whose model list holds the name."""
    if name in open_clip.list_models():
        return "open_clip"
    if timm.is_model(name.split(".")[0]):
        return "timm"
    choices = [*open_clip.list_models(), *timm.list_models()]
    nearest = difflib.get_close_matches(name, choices, n=1, cutoff=0.3)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "give an open_clip or timm model name"
    raise UserError(f"unknown backbone {name!r}: {hint}")


def build_backbone(name: str, *, weights: str, size_px: int, grad_checkpointing: bool = False) -> Backbone:
    """Creates a tower with its weights: a tag, `pretrained` (timm), a local file, or `none` for random ones.

    Raises UserError for an unknown name or tag, weights that cannot be fetched, and files that do not fit.
    """
    library = library_of(name)
    local = Path(weights) if weights not in ("none", "pretrained") and is_file_name(weights) else None
    if local is not None and not local.is_file():
        raise UserError(f"backbone.weights = {weights!r}: no such file")
    build = _build_open_clip if library == "open_clip" else _build_timm
    backbone = build(name, "none" if local else weights, size_px)
    if local is not None:
        load_weights(backbone.module, local)
    if grad_checkpointing:
        try:
            backbone.module.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AssertionError, AttributeError):
            raise UserError(f"train.grad_checkpointing: {name} does not offer it: set it to false") from None
    return backbone


def is_file_name(weights: str) -> bool:
    return "/" in weights or weights.endswith((".safetensors", ".pt", ".pth", ".bin"))


def _build_open_clip(name: str, weights: str, size_px: int) -> Backbone:
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights == "pretrained":
        raise UserError(f"backbone.weights = 'pretrained': {name} has several, name one of {', '.join(tags) or 'none'}")
    if weights != "none" and weights not in tags:
        nearest = difflib.get_close_matches(weights, tags, n=1, cutoff=0.3)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose one of {', '.join(tags)}, a file, or none"
        raise UserError(f"backbone.weights = {weights!r}: unknown tag of {name}: {hint}")
    try:
        model = open_clip.create_model(
            name, pretrained=None if weights == "none" else weights, force_image_size=size_px, output_dict=True
        )
    except UNREACHABLE as error:
        raise unreachable(name, weights, error) from error
    preprocessing = open_clip.get_model_preprocess_cfg(model)
    visual = model.visual
    if getattr(visual, "proj", None) is not None:
        visual.proj = None  # Huang & Li 2022: the projection into the text space only overfits
    elif isinstance(getattr(visual, "head", None), nn.Module):
        visual.head = nn.Identity()
    return Backbone(
        module=visual,
        dim=output_dim(visual, size_px),
        mean=rgb(preprocessing["mean"]),
        std=rgb(preprocessing["std"]),
    )


def _build_timm(name: str, weights: str, size_px: int) -> Backbone:
    if weights not in ("none", "pretrained"):
        raise UserError(
            f"backbone.weights = {weights!r}: for the timm model {name} give 'pretrained', 'none' or a file"
        )
    settings = timm.get_pretrained_cfg(name)
    fixed_size: dict[str, Any] = {"img_size": size_px} if settings and settings.fixed_input_size else {}
    try:
        module = timm.create_model(name, pretrained=weights == "pretrained", num_classes=0, **fixed_size)
    except UNREACHABLE as error:
        raise unreachable(name, weights, error) from error
    mean, std = (settings.mean, settings.std) if settings is not None else (IMAGENET_MEAN, IMAGENET_STD)
    return Backbone(module=module, dim=output_dim(module, size_px), mean=rgb(mean), std=rgb(std))


def rgb(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def unreachable(name: str, weights: str, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return UserError(
        f"backbone.weights = {weights!r}: could not be had for {name} ({reason}): "
        "give a local file, or none for random weights"
    )


def output_dim(module: nn.Module, size_px: int) -> int:
    """The width of a tower's output, found by running it once."""
    was_training = module.training
    module.eval()
    with torch.no_grad():
        output: Tensor = module(torch.zeros(1, 3, size_px, size_px))
    module.train(was_training)
    if output.ndim != 2:
        raise UserError(f"the backbone gives shape {tuple(output.shape)}, expected one vector an image")
    return output.shape[1]


def load_weights(module: nn.Module, path: Path) -> None:
    """Fills a tower from a safetensors file, or from a torch file read with weights_only (nothing is executed).

    Takes a tower alone or a whole CLIP model (keys under `visual.`); classifier, text tower and projection are
    left out. Raises UserError when a tensor of the tower is missing or has another shape.
    """
    if path.suffix == ".safetensors":
        found: Any = dict(iterate_tensors(path))
    else:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            reason = str(error).splitlines()[0][:160]
            raise UserError(
                f"{path}: not a torch file of plain tensors ({reason}): convert it to safetensors"
            ) from None
        for wrapper in ("state_dict", "model"):
            if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
                found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise UserError(f"{path}: expected names and tensors")
    found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    if any(name.startswith("visual.") for name in found):
        found = {name.removeprefix("visual."): tensor for name, tensor in found.items() if name.startswith("visual.")}
    for name, target in module.state_dict(keep_vars=True).items():
        tensor = found.get(name)
        if tensor is None:
            raise UserError(f"{path}: lacks tensor {name!r} of the backbone: is it another architecture?")
        if tensor.shape != target.shape:
            raise UserError(
                f"{path}: tensor {name!r} has shape {tuple(tensor.shape)}, the backbone needs {tuple(target.shape)}"
            )
        with torch.no_grad():
            target.copy_(tensor)
