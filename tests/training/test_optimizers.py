"""Rates: warm-up, cosine, and which parameters get which."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from edgeembed.config import OptimSection
from edgeembed.errors import CheckFailed, UserError
from edgeembed.network.backbone import build_backbone
from edgeembed.network.blocks import blocks_by_depth
from edgeembed.training.freezing import freeze_blocks
from edgeembed.training.muon import Muon
from edgeembed.training.optimizers import build_optimizers, optimizer_step, set_learning_rates
from edgeembed.training.precision import MIN_LOSS_SCALE
from edgeembed.training.schedule import learning_rate_factor


def factor(step: int, **keys: Any) -> float:
    section = OptimSection(warmup_epochs=2, warmup_start_factor=0.1, **keys)
    return learning_rate_factor(step, steps_per_epoch=10, total_steps=100, section=section)


def test_warm_up_is_linear_and_the_cosine_ends_with_the_run() -> None:
    assert [factor(step) for step in (0, 10, 20)] == pytest.approx([0.1, 0.55, 1.0])
    assert factor(60) == pytest.approx(0.5)
    assert factor(99) < 0.001
    assert factor(99, final_lr_factor=0.2) == pytest.approx(0.2, abs=0.001)


def test_a_longer_cosine_is_cut_off_by_the_end_of_the_run() -> None:
    assert factor(99, decay_epochs=200) > 0.99


def test_the_length_of_a_decay_counts_from_the_first_epoch_warm_up_included() -> None:
    """Epochs 2 and 10 of 11 as in the code of Huang & Li 2022: 9.21e-5 and 2.03e-6 of 1e-4."""
    section = OptimSection(lr=1e-4, warmup_epochs=1, decay_epochs=11, decay_by="epoch")
    rates = [
        1e-4 * learning_rate_factor(step, steps_per_epoch=7, total_steps=77, section=section) for step in range(77)
    ]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[7:14] == pytest.approx([9.797e-5] * 7, rel=1e-4)
    assert rates[14:21] == pytest.approx([9.206e-5] * 7, rel=1e-4)
    assert rates[76] == pytest.approx(2.03e-6, rel=5e-3)


def test_stages_share_one_decay() -> None:
    """Six epochs and one more are the seven of a single cosine, also where an epoch has other steps."""
    whole = OptimSection(warmup_epochs=0, final_lr_factor=0.003)
    expected = [learning_rate_factor(step, steps_per_epoch=10, total_steps=70, section=whole) for step in range(70)]
    first = whole.model_copy(update={"decay_epochs": 7})
    found = [learning_rate_factor(step, steps_per_epoch=10, total_steps=60, section=first) for step in range(60)]
    last = first.model_copy(update={"decay_first_epoch": 6})
    found += [learning_rate_factor(step, steps_per_epoch=20, total_steps=20, section=last) for step in range(0, 20, 2)]
    assert found == pytest.approx(expected)
    assert 1e-3 * found[60] == pytest.approx(5.2e-5, rel=0.01)


def test_a_run_shorter_than_its_warm_up_still_has_rates() -> None:
    section = OptimSection(warmup_epochs=5)
    values = [learning_rate_factor(step, steps_per_epoch=10, total_steps=2, section=section) for step in (0, 1)]
    assert values == pytest.approx([0.01, 1.0])


def test_rates_are_stratified_and_vectors_are_not_decayed() -> None:
    backbone, neck, head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), nn.Linear(2, 9, bias=False)
    section = OptimSection(lr=1e-4, backbone_lr_factor=0.001, head_lr_factor=5.0, weight_decay=0.1)
    (optimizer,) = build_optimizers(backbone, neck, head, section)
    of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    assert of[id(backbone.weight)]["lr"] == pytest.approx(1e-7)
    assert of[id(neck.weight)]["lr"] == pytest.approx(1e-4)
    assert of[id(head.weight)]["lr"] == pytest.approx(5e-4)
    assert (of[id(neck.weight)]["weight_decay"], of[id(neck.bias)]["weight_decay"]) == (0.1, 0.0)
    set_learning_rates([optimizer], 0.5)
    assert of[id(head.weight)]["lr"] == pytest.approx(2.5e-4)
    assert isinstance(optimizer, torch.optim.AdamW)


def test_the_rate_can_fall_along_a_line() -> None:
    assert [factor(step, decay="linear") for step in (20, 60, 80)] == pytest.approx([1.0, 0.5, 0.25])


def test_blocks_near_the_input_learn_slower() -> None:
    backbone = build_backbone("test_vit", weights="none", size_px=32).module
    blocks = blocks_by_depth(backbone)
    assert sum(len(block) for block in blocks) == len(list(backbone.parameters()))
    (optimizer,) = build_optimizers(backbone, nn.Identity(), None, OptimSection(lr=1.0, layer_decay=0.5))
    of = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    rates = [of[id(block[0])] for block in blocks]
    assert rates == pytest.approx([0.5 ** (len(blocks) - 1 - i) for i in range(len(blocks))])
    named = dict(backbone.named_parameters())
    assert of[id(named["patch_embed.proj.weight"])] == min(rates)
    assert of[id(named["norm.weight"])] == 1.0


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "ViT-B-32", "ViT-B-16-SigLIP"])
def test_a_frozen_prefix_holds_the_stem_and_leaves_the_top(name: str) -> None:
    backbone = build_backbone(name, weights="none", size_px=64 if name.startswith("test") else 224).module
    freeze_blocks(backbone, 2)
    learning = [parameter.requires_grad for parameter in backbone.parameters()]
    assert not learning[0]
    assert learning[-1]
    assert not all(learning)
    with pytest.raises(UserError, match="frozen_blocks = 999: the backbone has"):
        freeze_blocks(backbone, 999)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "regnetx_002"])
def test_a_frozen_prefix_keeps_the_statistics_of_its_batch_norm(name: str) -> None:
    backbone = build_backbone(name, weights="none", size_px=64).module.train()
    freeze_blocks(backbone, 2)
    before = {key: value.clone() for key, value in backbone.state_dict().items() if "running" in key}
    with torch.no_grad():
        backbone(torch.rand(4, 3, 64, 64))
    changed = {key for key, value in backbone.state_dict().items() if key in before and not value.equal(before[key])}
    frozen = {
        f"{prefix}.{statistic}"
        for prefix, module in backbone.named_modules()
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad
        for statistic in ("running_mean", "running_var")
    }
    assert frozen
    assert changed == set(before) - frozen


DECAYED_OF = {
    "test_vit": "blocks.0.attn.qkv.weight",
    "ViT-B-32": "transformer.resblocks.0.mlp.c_fc.weight",
    "test_convnext": "stages.0.blocks.0.mlp.fc1.weight",
    "swin_tiny_patch4_window7_224": "layers.0.blocks.0.mlp.fc1.weight",
    "levit_128s": "stages.0.blocks.0.attn.qkv.linear.weight",
    "test_resnet": "conv1.0.weight",
}
NOT_DECAYED_OF = {
    "test_vit": ["cls_token", "pos_embed", "patch_embed.proj.weight", "norm.weight", "blocks.0.attn.qkv.bias"],
    "ViT-B-32": ["class_embedding", "positional_embedding", "conv1.weight", "ln_pre.weight", "ln_post.bias"],
    "test_convnext": ["stem.0.weight", "stem.1.weight"],
    "swin_tiny_patch4_window7_224": [
        "patch_embed.proj.weight",
        "layers.0.blocks.0.attn.relative_position_bias_table",
    ],
    "levit_128s": ["stages.0.blocks.0.attn.attention_biases"],
    "test_resnet": ["bn1.weight", "bn1.bias"],
}


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
@pytest.mark.parametrize("name", DECAYED_OF)
def test_tokens_positions_norms_biases_and_the_patch_stem_have_neither_decay_nor_muon(name: str, kind: str) -> None:
    size_px = 224 if name in ("ViT-B-32", "swin_tiny_patch4_window7_224", "levit_128s") else 64
    backbone = build_backbone(name, weights="none", size_px=size_px).module
    section = OptimSection.model_validate({"kind": kind, "weight_decay": 0.1})
    optimizers = build_optimizers(backbone, nn.Linear(4, 8), nn.Linear(8, 9, bias=False), section)
    decay_of, by_muon = {}, set()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert id(parameter) not in decay_of
                decay_of[id(parameter)] = group["weight_decay"]
                if isinstance(optimizer, Muon):
                    by_muon.add(id(parameter))
    named = dict(backbone.named_parameters())
    assert decay_of[id(named[DECAYED_OF[name]])] == 0.1
    for left_out in NOT_DECAYED_OF[name]:
        assert decay_of[id(named[left_out])] == 0.0, left_out
        assert id(named[left_out]) not in by_muon, left_out
    assert all(decay_of[id(parameter)] == 0.0 for parameter in named.values() if parameter.ndim < 2)
    assert {id(parameter) for parameter in named.values()} <= set(decay_of)


@pytest.mark.parametrize(("clip_norm", "expected"), [(None, 30.0), (1.0, 1.0), (100.0, 30.0)])
def test_gradients_are_clipped_only_where_a_norm_is_given(clip_norm: float | None, expected: float) -> None:
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = torch.full((4,), 15.0)
    sgd = torch.optim.SGD([weight], lr=1.0)
    norm = optimizer_step(
        [sgd], [weight], loss=1.0, step=0, clip_norm=clip_norm, scaler=torch.amp.GradScaler("cpu", enabled=False)
    )
    assert norm == pytest.approx(30.0)
    assert weight.detach().norm().item() == pytest.approx(expected, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_a_run_that_does_not_clip() -> None:
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = torch.full((4,), float("nan"))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with pytest.raises(CheckFailed, match="gradient norm nan"):
        optimizer_step([torch.optim.SGD([weight], lr=1.0)], [weight], loss=1.0, step=0, clip_norm=None, scaler=scaler)


def test_sgd_with_momentum() -> None:
    (optimizer,) = build_optimizers(nn.Linear(3, 4), nn.Linear(4, 2), None, OptimSection(kind="sgd", momentum=0.8))
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.8


def test_muon_leaves_class_centres_and_vectors_to_adamw() -> None:
    backbone, neck, head = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 16, bias=False)
    muon, adamw = build_optimizers(backbone, neck, head, OptimSection(kind="muon"))
    assert isinstance(muon, Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    turned, others = (
        {id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in (muon, adamw)
    )
    assert turned == {id(backbone.weight), id(neck.weight)}
    assert others == {id(backbone.bias), id(neck.bias), id(head.weight)}


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float32), ("fp32", torch.float32)]
)
def test_muon_computes_in_bf16_only_where_the_run_does(precision: str, dtype: torch.dtype) -> None:
    section = OptimSection(kind="muon", block_rows=64)
    muon, *_ = build_optimizers(nn.Linear(8, 8), nn.Linear(8, 8), None, section, precision=precision)
    assert isinstance(muon, Muon)
    assert (muon.dtype, muon.block_rows) == (dtype, 64)


@pytest.mark.parametrize("bad", [None, float("inf"), float("nan")])
def test_a_scaled_loss_that_overflows_costs_a_step_of_all_optimizers_and_half_the_scale(bad: float | None) -> None:
    vector, matrix = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(8, 8))
    optimizers = [Muon([{"params": [matrix]}], lr=0.1), torch.optim.AdamW([vector], lr=0.1)]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = vector.sum() + matrix.sum()
    scaler.scale(loss).backward()
    assert vector.grad is not None
    if bad is not None:
        vector.grad[0] = bad
    norm = optimizer_step(optimizers, [vector, matrix], loss=loss.item(), step=0, clip_norm=1.0, scaler=scaler)
    assert scaler.get_scale() == (1024.0 if bad is None else 512.0)
    for parameter in (vector, matrix):
        assert torch.equal(parameter.detach(), torch.ones_like(parameter)) == (bad is not None)
        assert parameter.grad is None
    assert norm == pytest.approx(67**0.5) if bad is None else not math.isfinite(norm)


def test_a_scaled_loss_that_overflows_at_the_least_scale_ends_the_run() -> None:
    parameter = nn.Parameter(torch.ones(3))
    scaler = torch.amp.GradScaler("cpu", init_scale=MIN_LOSS_SCALE)
    loss = parameter.sum()
    scaler.scale(loss).backward()
    parameter.grad[0] = float("nan")
    optimizer = torch.optim.AdamW([parameter])
    with pytest.raises(CheckFailed, match="gradient norm nan"):
        optimizer_step([optimizer], [parameter], loss=loss.item(), step=7, clip_norm=1.0, scaler=scaler)
