"""Builds optimisers with a learning rate for each part and block of a model, and takes their steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeembed.config import OptimSection
from edgeembed.errors import CheckFailed
from edgeembed.network.blocks import blocks_by_depth, no_weight_decay_ids
from edgeembed.training.muon import Muon, is_matrix
from edgeembed.training.precision import MIN_LOSS_SCALE


def build_optimizers(
    backbone: nn.Module,
    neck: nn.Module,
    head: nn.Module | None,
    section: OptimSection,
    *,
    sparse_head: bool = False,
    precision: str = "fp32",
) -> list[torch.optim.Optimizer]:
    """AdamW, SGD or Muon, with a learning rate for each part; frozen parameters are left out.

    The parameters of `no_weight_decay_ids` have neither weight decay nor Muon. A head with sparse gradients
    (`sparse_head`) gets a separate optimiser, which updates only the rows of a step. With Muon, class centres and what
    is not a matrix are trained by AdamW; Muon computes in bf16 where the run does.
    """
    groups: list[dict[str, Any]] = []
    muon_groups: list[dict[str, Any]] = []
    exempt = no_weight_decay_ids(backbone) | no_weight_decay_ids(neck)

    def add(parameters: Iterable[nn.Parameter], lr_factor: float, *, muon: bool = section.kind == "muon") -> None:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        # With weight decay by Muon, with weight decay by the other optimiser, exempt from both.
        for decayed, by_muon in ((True, True), (True, False), (False, False)):
            chosen = [
                p for p in trained if (id(p) not in exempt, decayed and muon and is_matrix(p)) == (decayed, by_muon)
            ]
            if chosen:
                lr, weight_decay = section.lr * lr_factor, section.weight_decay if decayed else 0.0
                # base_lr is what set_learning_rates multiplies.
                group = {"params": chosen, "lr": lr, "base_lr": lr, "weight_decay": weight_decay}
                (muon_groups if by_muon else groups).append(group)

    # Backbone: its last block has the whole learning rate, each earlier one that of the next times `layer_decay`.
    if section.layer_decay < 1.0:
        blocks = blocks_by_depth(backbone)
        for block, parameters in enumerate(blocks):
            add(parameters, section.backbone_lr_factor * section.layer_decay ** (len(blocks) - 1 - block))
    else:
        add(backbone.parameters(), section.backbone_lr_factor)
    add(neck.parameters(), 1.0)
    # Class centres: never by Muon, as Jordan et al. 2024 advise for output layers.
    head_parameters = [parameter for parameter in head.parameters() if parameter.requires_grad] if head else []
    if not sparse_head:
        add(head_parameters, section.head_lr_factor, muon=False)

    optimizers: list[torch.optim.Optimizer] = []
    if muon_groups:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        optimizers.append(Muon(muon_groups, lr=section.lr, block_rows=section.block_rows, dtype=dtype))
    if groups and section.kind == "sgd":
        optimizers.append(torch.optim.SGD(groups, lr=section.lr, momentum=section.momentum, fused=True))
    elif groups:
        optimizers.append(torch.optim.AdamW(groups, lr=section.lr, betas=section.betas, fused=True))
    # SparseAdam has no weight decay, which would change every row in every step.
    if sparse_head and head_parameters:
        lr = section.lr * section.head_lr_factor
        sparse = {"params": head_parameters, "lr": lr, "base_lr": lr}
        optimizers.append(torch.optim.SparseAdam([sparse], lr=lr, betas=section.betas))
    return optimizers


def set_learning_rates(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Sets every learning rate to `factor` times its value without warm-up and decay."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor


def optimizer_step(
    optimizers: Sequence[torch.optim.Optimizer],
    parameters: Iterable[nn.Parameter],
    *,
    loss: float,
    step: int,
    clip_norm: float | None,
    scaler: torch.amp.GradScaler,
) -> float:
    """Clips gradients to `clip_norm` (None: not at all), updates the weights and clears the gradients.

    Returns the gradients' norm before clipping. Raises CheckFailed, and changes nothing, where the loss or the norm is
    not finite. In fp16, where the loss is scaled, such a norm skips the update and lowers the scale instead.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    if not parameters:  # a batch of which nothing could be decoded
        return 0.0
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    # Of the unscaled gradients: the norm must not depend on the loss scale.
    norm = clip_gradients(parameters, clip_norm).item()
    # At the smallest scale an infinite norm is a diverged run, not a scale that is too large.
    overflowed = scaler.is_enabled() and not math.isfinite(norm) and scaler.get_scale() > MIN_LOSS_SCALE
    if not (math.isfinite(loss) and (math.isfinite(norm) or overflowed)):
        raise CheckFailed(
            f"step {step}: loss {loss}, gradient norm {norm}: training stopped, the last checkpoint is kept: lower "
            "optim.lr or set train.precision=fp32"
        )
    for optimizer in optimizers:
        if not overflowed:  # the scaler decides for each optimiser by its gradients, but clipping has made them all NaN
            scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    scaler.update()
    return norm


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scales gradients down to a total norm of `max_norm` (None: not at all) and returns the norm before that.

    Sparse gradients count by their values.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    values = [gradient._values() if gradient.is_sparse else gradient for gradient in gradients]
    norm = nn.utils.get_total_norm(values)
    if max_norm is not None:
        torch._foreach_mul_(values, (max_norm / (norm + 1e-6)).clamp_max(1.0))
    return norm
