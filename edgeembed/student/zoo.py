"""Students: short names for networks worth putting on a device, and any other timm model by its own name."""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator

import timm
import torch
from huggingface_hub import constants as hub_constants
from timm.utils.model import reparameterize_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgeembed.errors import UserError, unknown_choice
from edgeembed.teacher.model import EmbeddingModel, Network, build_model
from edgeembed.teacher.starting_weights import name_starting_weights

log = logging.getLogger(__name__)

ALIASES: dict[str, str] = {
    "vit_b16": "vit_base_patch16_224",
    "vit_s16": "vit_small_patch16_224",
    "vit_t16": "vit_tiny_patch16_224",
    "tiny_vit_5m": "tiny_vit_5m_224",
    "tiny_vit_11m": "tiny_vit_11m_224",
    "mobilenetv4_s": "mobilenetv4_conv_small",
    "mobilenetv4_m": "mobilenetv4_conv_medium",
    "mobilenetv4_hybrid_m": "mobilenetv4_hybrid_medium",
    "fastvit_t8": "fastvit_t8",
    "fastvit_sa12": "fastvit_sa12",
    "repvit_m1": "repvit_m1",
    "repvit_m1_1": "repvit_m1_1",
    "efficientformerv2_s0": "efficientformerv2_s0",
    "efficientnet_b0": "efficientnet_b0",
    "resnet_xs": "test_resnet",  # 0.37 M parameters, plain convolutions: learns within minutes on a CPU
    "resnet18": "resnet18",
    "resnet50": "resnet50",
}

NEEDS_FIXED_SIZE_224 = ("efficientformerv2",)
"""Families whose attention biases are tabulated for one input size that timm does not take as an argument."""


def timm_name(student: str) -> str:
    """The timm model that an alias or a timm name means. Raises UserError with the nearest known name."""
    if student in ALIASES:
        return ALIASES[student]
    if timm.is_model(student.split(".")[0]):
        return student
    raise unknown_choice("student", student, [*ALIASES, *timm.list_models()], "(an alias or any timm model name)")


def build_student(
    student: str, *, weights: str, size_px: int, dim: int, dropout: float = 0.0, grad_checkpointing: bool = False
) -> EmbeddingModel:
    """A student with its projection to the teacher's dimension.

    `weights`: `auto` (pretrained where they can be had, else random with a warning), `pretrained`, `none`, or a file.
    """
    name = timm_name(student)
    if name.startswith(NEEDS_FIXED_SIZE_224) and size_px != 224:
        raise UserError(f"image.size_px = {size_px}: {student} takes 224 only")
    build = functools.partial(
        build_model, name, size_px=size_px, dim=dim, dropout=dropout, grad_checkpointing=grad_checkpointing
    )
    if weights != "auto":
        model = build(weights=weights)
    else:
        weights = "pretrained"
        try:
            with hub_only_if_reachable():
                model = build(weights=weights)
        except UserError as error:
            log.warning("starting from random weights, which recipe scratch is made for: %s", error)
            weights = "none"
            model = build(weights=weights)
    model.starting_weights = name_starting_weights(name, weights)
    return model


@contextlib.contextmanager
def hub_only_if_reachable() -> Iterator[None]:
    """Keeps the hub client to its local cache where its host has no address, instead of a minute of retries."""
    offline = hub_constants.HF_HUB_OFFLINE
    host = urllib.parse.urlparse(hub_constants.ENDPOINT).hostname or ""
    if not urllib.request.getproxies():
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            hub_constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub_constants.HF_HUB_OFFLINE = offline


def fuse(model: nn.Module) -> nn.Module:
    """Folds the parallel training branches of FastViT, RepViT, MobileOne and the like; the function stays the same."""
    fused = reparameterize_model(model, inplace=False)
    assert isinstance(fused, nn.Module)
    return fused.eval()


def count_macs(model: Network) -> int:
    """Multiply-accumulates of one image through convolutions, linear layers and attention products."""
    was_training = model.training
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, model.size_px, model.size_px))
    model.train(was_training)
    return counter.get_total_flops() // 2
