"""Backbones: image towers of open_clip models without their projection, and timm models without their classifier."""

from __future__ import annotations

import contextlib
import logging
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import open_clip
import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from edgeembed.errors import UserError
from edgeembed.model_json import Pooling
from edgeembed.network.attention import add_attention, require_attention
from edgeembed.network.cut import keep_first_blocks, remove_head_convolution
from edgeembed.network.eval_mode import eval_mode
from edgeembed.network.hub import hub_within_seconds
from edgeembed.network.initial_weights import name_starting_weights
from edgeembed.network.input_sizes import require_accepted_size
from edgeembed.network.model_names import is_weight_file_name, library_of, require_weights, unknown_tag
from edgeembed.network.pooling import GeMBackbone
from edgeembed.network.position_embedding import set_input_size
from edgeembed.network.published_weights import WeightSource, find_weights, not_loaded
from edgeembed.network.weight_files import load_weights, load_weights_in_order

log = logging.getLogger(__name__)

DEFAULT_SIZE_PX = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE_ERRORS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)
"""What networks raise for an input size that they do not accept."""
LOADING_ERRORS = (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError)
"""What the libraries raise for weights that cannot be downloaded, and for a damaged copy of an earlier download."""

ModuleWithStats: TypeAlias = tuple[nn.Module, Sequence[float], Sequence[float]]
"""A network without its head, and the mean and standard deviation of the RGB input that it was made for."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A module that maps normalised images (B, 3, H, W) to features (B, dim), and how it was built."""

    name: str
    module: nn.Module
    dim: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pooling: Pooling
    patch_stride: int | None
    output_stride: int | None
    blocks: int | None
    attention_blocks: int | None
    starting_weights: str


def build_backbone(
    name: str,
    *,
    weights: str,
    size_px: int,
    patch_stride: int | None = None,
    pooling: Pooling = "default",
    output_stride: int | None = None,
    blocks: int | None = None,
    attention_blocks: int | None = None,
    grad_checkpointing: bool = False,
    weights_key: str = "backbone.weights",
) -> Backbone:
    """Builds a backbone and loads its weights: a tag, `pretrained` (timm), a local file, or `none` for random ones.

    Published weights come from the local cache of earlier downloads, an installed weight package, or the hub.

    `pooling`: the model's `default`, or `gem` (convolutional timm models). `output_stride`: input pixels per position
    of the last feature map, below the default of such a model. `blocks`: how many of the first blocks to keep, as
    `keep_first_blocks` counts them. `attention_blocks`: how many transformer blocks, with random weights, to add
    behind them. `weights_key`: the recipe key that errors name. Raises UserError for an unknown name or tag, weights
    that cannot be downloaded, files that do not fit, sizes that the network does not accept, blocks that it does not
    have, and transformer blocks that cannot be added to it.
    """
    library = library_of(name)
    require_weights(name, weights, library=library, key=weights_key)
    if pooling != "default" and library == "open_clip":
        raise UserError(
            f"backbone.pooling = {pooling!r}: not available for open_clip models such as {name}: set default"
        )
    if output_stride is not None and library == "open_clip":
        raise no_output_stride(name, output_stride)
    with size_errors_as_user_errors(name, library, size_px):
        local = Path(weights) if weights not in ("none", "pretrained") and is_weight_file_name(weights) else None
        # A file holds position embeddings of the published size: they are loaded first, then interpolated.
        built_px = fixed_input_size(name, library) or size_px if local else size_px
        source: WeightSource | None = None
        if local is not None or weights == "none":
            module, mean, std = random_module(name, library, size_px=built_px, output_stride=output_stride)
        else:
            source = find_weights(name, weights, library=library, key=weights_key)
            module, mean, std = pretrained_module(
                name, library, weights, built_px, output_stride, source=source, key=weights_key
            )
        if local is not None:
            load_weights(module, local)
        # Transformers: position embeddings of the published size become those of the requested one.
        if built_px != size_px or patch_stride is not None:
            set_input_size(module, size_px, patch_stride)
        # After the weights, so that files and downloads are checked against the whole network.
        if blocks is not None:
            keep_first_blocks(module, blocks, name=name, key=sibling_key(weights_key, "blocks"))
        if attention_blocks is not None:
            require_attention(module, attention_blocks, name=name, key=sibling_key(weights_key, "attention_blocks"))
            remove_head_convolution(module)
            add_attention(module, attention_blocks, channels=output_dim(module, size_px))
        # After the weights: the wrapper changes the names of tensors.
        if pooling == "gem":
            module = GeMBackbone(module)
        if grad_checkpointing:
            try:
                module.set_grad_checkpointing(True)  # type: ignore[operator]
            except (AssertionError, AttributeError):
                raise UserError(f"train.grad_checkpointing: {name} does not offer it: set it to false") from None
        starting_weights = name_starting_weights(name, weights, source=source.text if source else "")
        if source is not None:
            log.info("starting weights: %s", starting_weights)
        return Backbone(
            name=name,
            module=module,
            dim=output_dim(module, size_px),
            mean=rgb(mean),
            std=rgb(std),
            pooling=pooling,
            patch_stride=patch_stride,
            output_stride=output_stride,
            blocks=blocks,
            attention_blocks=attention_blocks,
            starting_weights=starting_weights,
        )


@contextlib.contextmanager
def size_errors_as_user_errors(name: str, library: str, size_px: int) -> Iterator[None]:
    """Within the block, what a network raises for an input size that it does not accept becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except SIZE_ERRORS as error:
        # The clearer error, with the nearest accepted sizes, where the size alone is the cause.
        require_input_size(name, size_px)
        default_px = default_input_size(name, library)
        # At the default size, or without enough memory, the input size is not the cause.
        if size_px == default_px or "memory" in str(error):
            raise
        raise UserError(
            f"image.size_px = {size_px}: {name} fails on images of this size ({error}): give {default_px}, its default"
        ) from error


def require_input_size(name: str, size_px: int) -> None:
    """Raises UserError, before anything is built or downloaded, for an input size that a network does not accept."""
    library = library_of(name)

    def build(side_px: int) -> nn.Module:
        return random_module(name, library, size_px=side_px)[0]

    require_accepted_size(name, size_px, default_px=default_input_size(name, library), build=build)


def require_blocks(
    name: str, blocks: int | None, attention_blocks: int | None = None, *, weights_key: str = "backbone.weights"
) -> None:
    """Raises UserError, before weights are downloaded, where blocks cannot be kept or transformer blocks added."""
    if blocks is None and attention_blocks is None:
        return
    with torch.device("meta"):  # computes shapes but no values, so that it takes no time
        module, _, _ = random_module(name, library_of(name), size_px=default_input_size(name, library_of(name)))
    if blocks is not None:
        keep_first_blocks(module, blocks, name=name, key=sibling_key(weights_key, "blocks"))
    if attention_blocks is not None:
        require_attention(module, attention_blocks, name=name, key=sibling_key(weights_key, "attention_blocks"))


def sibling_key(weights_key: str, name: str) -> str:
    """Returns the key `name` of the section that `weights_key` is in: student.blocks for student.weights."""
    return weights_key.replace("weights", name)


def default_input_size(name: str, library: str) -> int:
    """Returns the input size, in pixels, that a model was trained with, or 224 where its library does not say."""
    settings = None if library == "open_clip" else timm_settings(name)
    return fixed_input_size(name, library) or (settings.input_size[-1] if settings is not None else DEFAULT_SIZE_PX)


def random_module(name: str, library: str, *, size_px: int, output_stride: int | None = None) -> ModuleWithStats:
    """Builds a network with random weights."""
    if library == "open_clip":
        with logging_disabled():  # open_clip warns that the weights are random
            return _build_open_clip(name, "none", size_px)
    return _build_timm(name, "none", size_px, output_stride)


def timm_settings(name: str) -> Any:
    """Returns timm's configuration of a model's pretrained weights, None for none. Raises UserError for a wrong tag."""
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:
        model, _, tag = name.partition(".")
        known = [each.partition(".")[2] for each in timm.list_models(f"{model}.*", include_tags=True)]
        raise unknown_tag("model", model, tag, known) from None


@contextlib.contextmanager
def logging_disabled() -> Iterator[None]:
    """Within the block nothing up to level ERROR is logged."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def fixed_input_size(name: str, library: str) -> int | None:
    """Returns the input size, in pixels, that a model's published weights are fixed to; None if they fit any size."""
    if library == "open_clip":
        size = (open_clip.get_model_config(name) or {})["vision_cfg"].get("image_size", 224)
        return int(size[0] if isinstance(size, (list, tuple)) else size)
    settings = timm_settings(name)
    return settings.input_size[-1] if settings is not None and settings.fixed_input_size else None


def pretrained_module(
    name: str, library: str, weights: str, size_px: int, output_stride: int | None, *, source: WeightSource, key: str
) -> ModuleWithStats:
    """Builds a network with published weights from their source. Raises UserError if they cannot be loaded from it."""
    if source.package_file is not None:
        module, mean, std = random_module(name, library, size_px=size_px, output_stride=output_stride)
        load_weights_in_order(module, source.package_file)
        return module, mean, std
    # One error instead of the client's warnings. With a copy, no network is needed.
    with hub_within_seconds(offline=source.copy is not None), logging_disabled():
        try:
            if library == "open_clip":
                return _build_open_clip(name, weights, size_px)
            return _build_timm(name, weights, size_px, output_stride)
        except UserError:
            raise
        except LOADING_ERRORS as error:
            # The weights were found, but their position embeddings have another shape.
            if "size mismatch" in str(error):
                raise UserError(
                    f"image.size_px = {size_px}: the weights {key} = {weights!r} of {name} do not fit images of this "
                    f"size: give the size that they were trained at, {fixed_input_size(name, library)}, or {key}=none"
                ) from None
            raise not_loaded(key, weights, name, source=source, error=error) from error


def _build_open_clip(name: str, weights: str, size_px: int) -> ModuleWithStats:
    model = open_clip.create_model(
        name,
        pretrained=None if weights == "none" else weights,
        force_image_size=size_px,
        output_dict=True,
        # open_clip would use the CPU, also where sizes are tested on the meta device.
        device=torch.get_default_device(),
    )
    preprocessing = open_clip.get_model_preprocess_cfg(model)
    visual = model.visual
    if getattr(visual, "output_tokens", False):
        visual.output_tokens = False  # they are for CoCa's text decoder
    if getattr(visual, "proj", None) is not None:
        visual.proj = None  # Huang & Li 2022: the projection into the text space only overfits
    # open_clip's TimmModel: the projection is in `head`.
    elif isinstance(getattr(visual, "head", None), nn.Module):
        visual.head = nn.Identity()
    return visual, preprocessing["mean"], preprocessing["std"]


DYNAMIC_SIZE_MODULES = tuple(f"timm.models.{module}" for module in ("vision_transformer", "deit", "eva"))
"""Modules of timm with `dynamic_img_size`: position embeddings are resized to each input, so that views may grow."""


def _build_timm(name: str, weights: str, size_px: int, output_stride: int | None) -> ModuleWithStats:
    settings = timm_settings(name)
    options: dict[str, Any] = {"img_size": size_px} if settings and settings.fixed_input_size else {}
    if timm.model_entrypoint(name).__module__ in DYNAMIC_SIZE_MODULES:
        options["dynamic_img_size"] = True
    if output_stride is not None:
        options["output_stride"] = output_stride
    try:
        # No classes: without the classifier, the output is the pooled features.
        module = timm.create_model(name, pretrained=weights == "pretrained", num_classes=0, **options)
    except (AssertionError, TypeError):
        # Without a stride in the recipe, the error has another cause.
        if output_stride is None:
            raise
        raise no_output_stride(name, output_stride) from None
    mean, std = (settings.mean, settings.std) if settings is not None else (IMAGENET_MEAN, IMAGENET_STD)
    return module, mean, std


def rgb(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns a mean or standard deviation as a tuple of one value for each channel."""
    red, green, blue = values
    return red, green, blue


def no_output_stride(name: str, output_stride: int) -> UserError:
    """Returns the error for a network whose output stride is fixed."""
    return UserError(f"backbone.output_stride = {output_stride}: {name} does not offer it: leave it out")


def output_dim(module: nn.Module, size_px: int) -> int:
    """Returns the number of features that a network computes, by running it once."""
    with eval_mode(module), torch.no_grad():
        output: Tensor = module(torch.zeros(1, 3, size_px, size_px))
    if output.ndim != 2:
        raise UserError(f"the backbone returns shape {tuple(output.shape)}, expected one vector for each image")
    return output.shape[1]
