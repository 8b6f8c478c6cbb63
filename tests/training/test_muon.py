"""Muon: held against timm's, whose iteration is the reference."""

from __future__ import annotations

import pytest
import torch
from timm.optim.muon import Muon as TimmMuon
from timm.optim.muon import _is_suitable_for_muon, zeropower_via_newtonschulz
from torch import nn

from edgeembed.student.zoo import build_student
from edgeembed.training.muon import QUINTIC, Muon, is_matrix, newton_schulz_by_gram, rows_per_block


@pytest.mark.parametrize("shape", [(3, 64, 576), (2, 128, 960), (1, 48, 48), (2, 512, 64)])
@pytest.mark.parametrize("smallest", [0.0, -6.0])
def test_iterating_on_the_gram_matrix_gives_what_iterating_on_the_matrix_gives(
    shape: tuple[int, int, int], smallest: float
) -> None:
    left, _, right = torch.linalg.svd(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False
    )
    matrix_NRC = left * torch.logspace(0.0, smallest, left.shape[2]) @ right
    exact_NRC = zeropower_via_newtonschulz(matrix_NRC.double(), len(QUINTIC), QUINTIC, dtype=torch.float64)
    error = newton_schulz_by_gram(matrix_NRC).double() - exact_NRC
    assert error.norm() < 1e-3 * exact_NRC.norm()  # bf16: 6e-3 where all singular values are alike, else 0.2


def test_steps_are_those_of_timm() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 32)).to(memory_format=torch.channels_last)

    ours, theirs = network(), network()
    matrices = [[p for p in model.parameters() if is_matrix(p)] for model in (ours, theirs)]
    optimizers = (
        Muon([{"params": matrices[0], "weight_decay": 0.1}], lr=0.01),
        TimmMuon([{"params": matrices[1], "weight_decay": 0.1}], lr=0.01, nesterov=True),
    )
    for step in range(4):
        for parameters, optimizer in zip(matrices, optimizers, strict=True):
            draw = torch.Generator().manual_seed(step)
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=draw)
            optimizer.step()
    for mine, other in zip(*matrices, strict=True):
        torch.testing.assert_close(mine, other, atol=4 * 0.01 * 0.02, rtol=0.01)  # timm iterates in bf16


def test_matrices_of_one_shape_step_together_as_they_would_alone() -> None:
    torch.manual_seed(0)
    together = [nn.Parameter(torch.randn(16, 24)) for _ in range(3)]
    alone = [nn.Parameter(parameter.detach().clone()) for parameter in together]
    for one, other in zip(together, alone, strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    Muon([{"params": together}], lr=0.1).step()
    for parameter in alone:
        Muon([{"params": [parameter]}], lr=0.1).step()
    torch.testing.assert_close(together, alone)


def test_large_matrices_are_orthogonalised_in_blocks_of_rows() -> None:
    torch.manual_seed(0)
    whole = nn.Parameter(torch.zeros(96, 80))
    whole.grad = torch.randn(96, 80)
    Muon([{"params": [whole]}], lr=1.0, block_rows=32).step()
    for block_RC in whole.detach().split(32):
        length_R = torch.linalg.svdvals(block_RC) / (0.2 * 80**0.5)  # as large as a step of AdamW
        assert ((length_R > 0.6) & (length_R < 1.3)).all()
    assert [rows_per_block(96, 80, most) for most in (None, 96, 80, 32, 33)] == [96, 96, 96, 32, 32]
    assert rows_per_block(1280, 960, 128) == 128
    assert rows_per_block(512, 128, 128) == 512  # the smaller side is what costs
    assert rows_per_block(251, 1000, 128) == 126


def test_a_number_of_rows_that_cannot_be_divided_is_orthogonalised_in_blocks_too() -> None:
    torch.manual_seed(0)
    odd = nn.Parameter(torch.zeros(67, 80))
    odd.grad = torch.randn(67, 80)
    Muon([{"params": [odd]}], lr=1.0, block_rows=32).step()
    for block_RC in odd.detach().split(23):  # 23, 23 and 21 rows
        length_R = torch.linalg.svdvals(block_RC) / (0.2 * 80**0.5)
        assert ((length_R > 0.6) & (length_R < 1.3)).all()


@pytest.mark.parametrize("student", ["mobilenetv4_s", "vit_t16", "fastvit_t8"])
def test_the_same_parameters_as_in_timm_are_matrices(student: str) -> None:
    model = build_student(student, weights="none", size_px=224, dim=64)
    assert sum(map(is_matrix, model.parameters())) > 10
    for name, parameter in model.named_parameters():
        assert is_matrix(parameter) == _is_suitable_for_muon(parameter), name
