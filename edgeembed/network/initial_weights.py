"""Names the weights that a network began with, for its model card."""

from __future__ import annotations

from pathlib import Path

import timm

from edgeembed.network.names import is_file_name

RANDOM = "none"


def name_starting_weights(backbone: str, weights: str) -> str:
    """`none` for random ones; a file's name; else the published weights, with the library that they come from.

    `weights` is what a recipe says once `auto` is resolved: `none`, `pretrained`, an open_clip tag or a file.
    """
    if weights == RANDOM:
        return RANDOM
    if weights != "pretrained":
        return f"file {Path(weights).name}" if is_file_name(weights) else f"{backbone} {weights} (open_clip)"
    settings = timm.get_pretrained_cfg(backbone)
    tag = settings.tag if settings is not None else None
    published = f"{backbone.split('.')[0]}.{tag}" if tag else backbone
    return f"{published} (timm)"
