"""The name of the weights that training started from, for the model card."""

from __future__ import annotations

from pathlib import Path

import timm

from edgeembed.network.model_names import is_weight_file_name

RANDOM = "none"


def name_starting_weights(backbone: str, weights: str, *, source: str = "") -> str:
    """Returns `none` for random weights, a file's name, or name, library and source of published weights.

    `weights`: the recipe's value with `auto` resolved: `none`, `pretrained`, an open_clip tag or a file. `source`:
    where published weights were found, "" if that is not known.
    """
    origin = f", from {source}" if source else ""
    if weights == RANDOM:
        return RANDOM
    if is_weight_file_name(weights):
        return f"file {Path(weights).name}"
    if weights != "pretrained":
        return f"{backbone} {weights} (open_clip{origin})"
    # A name without a tag means timm's default tag, which the model card names.
    settings = timm.get_pretrained_cfg(backbone)
    tag = settings.tag if settings is not None else None
    published = f"{backbone.split('.')[0]}.{tag}" if tag else backbone
    return f"{published} (timm{origin})"
