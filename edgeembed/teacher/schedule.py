"""Learning rates: stratified over the parts of a model, warmed up, then a cosine."""

from __future__ import annotations

import math

import torch
from torch import nn

from edgeembed.config import OptimSection


def rate_factor(step: int, *, steps_per_epoch: int, total_steps: int, section: OptimSection) -> float:
    """Factor on every rate at a step: linear warm-up per step, then a cosine per step down to `final_lr_factor`."""
    warmup = min(section.warmup_epochs * steps_per_epoch, total_steps - 1)
    if step < warmup:
        return section.warmup_start_factor + (1.0 - section.warmup_start_factor) * step / warmup
    horizon = total_steps if section.cosine_epochs is None else section.cosine_epochs * steps_per_epoch
    progress = min(1.0, (step - warmup) / max(1.0, horizon - warmup))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return section.final_lr_factor + (1.0 - section.final_lr_factor) * cosine


def build_optimizer(
    backbone: nn.Module, neck: nn.Module, head: nn.Module | None, section: OptimSection
) -> torch.optim.AdamW:
    """AdamW with a rate for each part; norms, biases and other vectors are not decayed."""
    groups = []
    parts = [(backbone, section.backbone_lr_factor), (neck, 1.0)]
    if head is not None:
        parts.append((head, section.head_lr_factor))
    for module, factor in parts:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for decayed in (True, False):
            chosen = [parameter for parameter in parameters if (parameter.ndim > 1) == decayed]
            if chosen:
                decay = section.weight_decay if decayed else 0.0
                rate = section.lr * factor
                groups.append({"params": chosen, "lr": rate, "base_lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups, lr=section.lr, betas=section.betas, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
