"""The name of the weights that training started from, for the model card."""

from __future__ import annotations

from pathlib import Path

import timm

from edgeembed.network.model_names import is_weight_file_name

RANDOM = "none"


def name_starting_weights(backbone: str, weights: str) -> str:
    """Returns `none` for random weights, a file's name, or the name and library of published weights.

    `weights`: the recipe's value with `auto` resolved: `none`, `pretrained`, an open_clip tag or a file.
    """
    if weights == RANDOM:
        return RANDOM
    if weights != "pretrained":
        return f"file {Path(weights).name}" if is_weight_file_name(weights) else f"{backbone} {weights} (open_clip)"
    # A name without a tag means timm's default tag, which the model card names.
    settings = timm.get_pretrained_cfg(backbone)
    tag = settings.tag if settings is not None else None
    published = f"{backbone.split('.')[0]}.{tag}" if tag else backbone
    return f"{published} (timm)"
