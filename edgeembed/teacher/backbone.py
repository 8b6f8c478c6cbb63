"""Image towers: any open_clip visual tower without its projection, or any timm model without its classifier."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import open_clip
import timm
import torch
from torch import Tensor, nn

from edgeembed.checkpoint import iterate_tensors
from edgeembed.errors import UserError
from edgeembed.teacher.positions import set_input_size

log = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Tower: TypeAlias = tuple[nn.Module, Sequence[float], Sequence[float]]  # network, mean, std
UNREACHABLE = (OSError, RuntimeError, ValueError)  # what the hub clients raise without a network or for a wrong tag


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A tower that maps normalised (B, 3, H, W) to (B, dim), what it is, and the constants that it was made for."""

    name: str
    module: nn.Module
    dim: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pooling: str
    patch_stride: int | None
    output_stride: int | None


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


def build_backbone(
    name: str,
    *,
    weights: str,
    size_px: int,
    patch_stride: int | None = None,
    pooling: str = "own",
    output_stride: int | None = None,
    grad_checkpointing: bool = False,
) -> Backbone:
    """Creates a tower with its weights: a tag, `pretrained` (timm), a local file, or `none` for random ones.

    `pooling` is the tower's `own`, or `gem` (convolutional timm towers). With `output_stride` the last blocks of such a
    tower keep a finer map: a position for so many pixels. Raises UserError for an unknown name or tag, weights that
    cannot be fetched, and files that do not fit.
    """
    library = library_of(name)
    local = Path(weights) if weights not in ("none", "pretrained") and is_file_name(weights) else None
    if local is not None and not local.is_file():
        raise UserError(f"backbone.weights = {weights!r}: no such file")
    if pooling != "own" and library == "open_clip":
        raise UserError(f"backbone.pooling = {pooling!r}: {name} pools by itself: set it to own")
    if output_stride is not None and library == "open_clip":
        raise no_output_stride(name, output_stride)
    made_px = native_size(name, library) or size_px if local else size_px
    from_hub = "none" if local else weights
    if library == "open_clip":
        module, mean, std = _build_open_clip(name, from_hub, made_px)
    else:
        module, mean, std = _build_timm(name, from_hub, made_px, output_stride)
    if local is not None:
        load_weights(module, local)
    if made_px != size_px or patch_stride is not None:
        set_input_size(module, size_px, patch_stride)
    if pooling == "gem":
        module = GeMTower(module)
    if grad_checkpointing:
        try:
            module.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AssertionError, AttributeError):
            raise UserError(f"train.grad_checkpointing: {name} does not offer it: set it to false") from None
    return Backbone(
        name=name,
        module=module,
        dim=output_dim(module, size_px),
        mean=rgb(mean),
        std=rgb(std),
        pooling=pooling,
        patch_stride=patch_stride,
        output_stride=output_stride,
    )


class GeMTower(nn.Module):
    """A convolutional tower with generalised-mean pooling (Radenovic et al. 2018): the mean of x^p to the 1/p.

    `p` is learnt and starts at 3; values are taken at 1e-6 at least, in float32.
    """

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        head: Any = getattr(features, "head", None)
        pools_in_head = hasattr(head, "global_pool") and not list(head.parameters())
        if not hasattr(features, "forward_features") or not (hasattr(features, "global_pool") or pools_in_head):
            raise UserError(f"backbone.pooling = 'gem': {type(features).__name__} has no pooling to replace")
        self.features: Any = features
        (head if pools_in_head else self.features).global_pool = nn.Identity()
        self.power = nn.Parameter(torch.tensor([3.0]))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        feature_BCHW: Tensor = self.features.forward_features(image_BCHW)
        if feature_BCHW.ndim != 4:
            raise UserError("backbone.pooling = 'gem': the tower gives no feature map: choose a convolutional one")
        with torch.autocast(feature_BCHW.device.type, enabled=False):
            return feature_BCHW.float().clamp_min(1e-6).pow(self.power).mean(dim=(2, 3)).pow(1.0 / self.power)

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.features.set_grad_checkpointing(enable)


def native_size(name: str, library: str) -> int | None:
    """The side of the squares that a model's published weights were made for; None where any size is as good."""
    if library == "open_clip":
        size = (open_clip.get_model_config(name) or {})["vision_cfg"].get("image_size", 224)
        return int(size[0] if isinstance(size, (list, tuple)) else size)
    settings = timm.get_pretrained_cfg(name)
    return settings.input_size[-1] if settings is not None and settings.fixed_input_size else None


def is_file_name(weights: str) -> bool:
    return "/" in weights or weights.endswith((".safetensors", ".pt", ".pth", ".bin"))


def _build_open_clip(name: str, weights: str, size_px: int) -> Tower:
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
    if getattr(visual, "output_tokens", False):
        visual.output_tokens = False  # CoCa's text decoder reads them
    if getattr(visual, "proj", None) is not None:
        visual.proj = None  # Huang & Li 2022: the projection into the text space only overfits
    elif isinstance(getattr(visual, "head", None), nn.Module):
        visual.head = nn.Identity()
    return visual, preprocessing["mean"], preprocessing["std"]


RESIZED_AS_THEY_RUN = tuple(f"timm.models.{module}" for module in ("vision_transformer", "deit", "eva"))
"""Modules of timm whose transformers fit their position embeddings to each input, so that views may grow."""


def _build_timm(name: str, weights: str, size_px: int, output_stride: int | None) -> Tower:
    if weights not in ("none", "pretrained"):
        raise UserError(
            f"backbone.weights = {weights!r}: for the timm model {name} give 'pretrained', 'none' or a file"
        )
    settings = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"img_size": size_px} if settings and settings.fixed_input_size else {}
    if timm.model_entrypoint(name).__module__ in RESIZED_AS_THEY_RUN:
        options["dynamic_img_size"] = True
    if output_stride is not None:
        options["output_stride"] = output_stride
    try:
        module = timm.create_model(name, pretrained=weights == "pretrained", num_classes=0, **options)
    except (AssertionError, TypeError):
        if output_stride is None:
            raise
        raise no_output_stride(name, output_stride) from None
    except UNREACHABLE as error:
        raise unreachable(name, weights, error) from error
    mean, std = (settings.mean, settings.std) if settings is not None else (IMAGENET_MEAN, IMAGENET_STD)
    return module, mean, std


def rgb(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def no_output_stride(name: str, output_stride: int) -> UserError:
    return UserError(f"backbone.output_stride = {output_stride}: {name} does not offer it: leave it out")


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
