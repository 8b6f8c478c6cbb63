"""Muon (Jordan et al. 2024): an optimiser that makes the momentum of each matrix orthogonal before each step.

timm's Muon computes its Newton-Schulz iteration in bf16 on every device, one matrix after the other; where bf16 is
emulated, a step of MobileNetV4-small takes 10 s. This one computes in a given format, computes matrices of one shape
together, and can divide large matrices into blocks of rows, each made orthogonal separately (as in Khaled et al. 2025,
MuonBP): the cost of the iteration grows with the square of the rows, and on a CPU one large matrix can take longer than
all others.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim.muon import MUON_EPS, get_lr_scale, zeropower_via_newtonschulz
from torch import Tensor, nn

QUINTIC = [  # coefficients of a x + b x^3 + c x^5 in each iteration, found by F. Cesista; timm's default
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
MAX_ELEMENTS = 2**22  # of the matrices that are computed together; it limits the memory
MIN_SIDE, MAX_ASPECT = 4, 128.0


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; the step is as large as AdamW's (Liu et al. 2025), so one `lr` serves both.

    Takes parameters for which `is_matrix` holds. A convolution (O, I, H, W) counts as the matrix (O, I * H * W).
    Matrices of more rows and columns than `block_rows` are divided into blocks of at most as many rows.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        block_rows: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self.block_rows, self.dtype = block_rows, dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[matrix_shape(parameter)].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                at_once = max(1, MAX_ELEMENTS // (rows * columns))
                for first in range(0, len(parameters), at_once):
                    self._step(parameters[first : first + at_once], rows, columns, group)

    def _step(self, parameters: list[nn.Parameter], rows: int, columns: int, group: dict[str, Any]) -> None:
        """One step of matrices of one shape."""
        momentum = group["momentum"]
        updates = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            # Nesterov: the update is the gradient, moved towards the momentum that already includes it.
            buffer = state["momentum_buffer"].lerp_(parameter.grad, 1.0 - momentum)
            updates.append(parameter.grad.lerp(buffer, momentum).reshape(rows, columns))
        orthogonal_NRC = self._orthogonal(torch.stack(updates))
        for parameter, update_RC in zip(parameters, orthogonal_NRC, strict=True):
            # Decoupled weight decay, as in AdamW.
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
            parameter.sub_(update_RC.reshape(parameter.shape), alpha=group["lr"])

    def _orthogonal(self, matrix_NRC: Tensor) -> Tensor:
        """The nearest matrices with orthonormal rows or columns, block by block, scaled to AdamW's step size."""
        num_matrices, rows, columns = matrix_NRC.shape
        block_rows = rows_per_block(rows, columns, self.block_rows)
        padded_NRC = F.pad(matrix_NRC, (0, 0, 0, -rows % block_rows))  # rows of zeros change no other row and stay zero
        block_NRC = padded_NRC.reshape(-1, block_rows, columns)
        if self.dtype == torch.float32:
            orthogonal_NRC = newton_schulz_by_gram(block_NRC)
        else:  # rounding errors of the Gram matrix grow too fast in fewer bits
            orthogonal_NRC = zeropower_via_newtonschulz(block_NRC, len(QUINTIC), QUINTIC, dtype=self.dtype)
        scale = get_lr_scale(block_NRC.shape, "match_rms_adamw")
        return orthogonal_NRC.to(matrix_NRC.dtype).reshape(num_matrices, -1, columns)[:, :rows] * scale


def newton_schulz_by_gram(matrix_NRC: Tensor) -> Tensor:
    """The same as timm's `zeropower_via_newtonschulz`, with 40 % of its operations where R is an eighth of C.

    Each iteration multiplies X by P(G), where G = X X^T is the Gram matrix. All of these commute, so the iterations run
    on the small square G alone, and X is multiplied once, by their product.
    """
    # With rows as the smaller side, the Gram matrix is the smaller of the two.
    if matrix_NRC.shape[1] > matrix_NRC.shape[2]:
        return newton_schulz_by_gram(matrix_NRC.mT).mT
    # All singular values become at most 1, where the iteration converges.
    matrix_NRC = matrix_NRC / matrix_NRC.norm(dim=(1, 2), keepdim=True).clamp_min(MUON_EPS)
    gram_NRR = matrix_NRC @ matrix_NRC.mT
    product_NRR: Tensor | None = None
    for first, third, fifth in QUINTIC:
        # P(G) = a I + b G + c G^2.
        factor_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=third, alpha=fifth)
        factor_NRR.diagonal(dim1=1, dim2=2).add_(first)
        product_NRR = factor_NRR if product_NRR is None else factor_NRR @ product_NRR
        # (P X) (P X)^T = P G P, as P is symmetric.
        gram_NRR = factor_NRR @ gram_NRR @ factor_NRR
    assert product_NRR is not None
    return product_NRR @ matrix_NRC


def rows_per_block(rows: int, columns: int, max_rows: int | None) -> int:
    """Rows of each block: at most `max_rows`, as even as possible. A matrix with a smaller side is one block."""
    if max_rows is None or min(rows, columns) <= max_rows:
        return rows
    return math.ceil(rows / math.ceil(rows / max_rows))


def matrix_shape(parameter: Tensor) -> tuple[int, int]:
    """Rows and columns of a parameter taken as a matrix."""
    return parameter.shape[0], parameter[0].numel()


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon trains a parameter: a matrix or a convolution.

    Not a depthwise convolution, a position embedding (1, T, D), or a matrix so narrow or long that an orthogonal update
    has little meaning (timm's rule).
    """
    if parameter.ndim < 2 or 1 in parameter.shape[:2]:
        return False
    smaller, larger = sorted(matrix_shape(parameter))
    return smaller >= MIN_SIDE and larger / smaller <= MAX_ASPECT
