"""Refuses an exported file that is worse than promised, measured with the file itself on real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeembed.bundle import LENGTH_TOLERANCE, Parity
from edgeembed.embedder import FloatArray
from edgeembed.errors import CheckFailed
from edgeembed.export.recipe import Thresholds
from edgeembed.metrics import mean_and_ci95

AveragePrecisions = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class MapLoss:
    """How far a file's mAP is below that of the fp32 file over the same queries, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was measured of one file in one runtime, and why it is refused, if it is."""

    parity: Parity
    map_loss: MapLoss | None
    reasons: tuple[str, ...]
    within: bool
    """Whether its loss, by chance or not, is one that it may have."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A file that failed its gate: what it is, its name in the bundle, and every reason."""

    precision: str
    path: str
    reasons: tuple[str, ...]


def parity(reference_ND: FloatArray, candidate_ND: FloatArray) -> Parity:
    """Agreement of two embeddings of the same images; both are unit vectors."""
    if candidate_ND.shape != reference_ND.shape or not are_unit(candidate_ND):
        return Parity(cosine_p1=-1.0, cosine_p50=-1.0, max_abs=2.0, images=len(reference_ND))  # unit vectors' worst
    cosine_N = np.einsum("nd,nd->n", reference_ND.astype(np.float64), candidate_ND.astype(np.float64))
    p1, p50 = np.percentile(cosine_N, [1, 50])
    largest = float(np.abs(reference_ND - candidate_ND).max())
    return Parity(cosine_p1=float(p1), cosine_p50=float(p50), max_abs=largest, images=len(reference_ND))


def are_unit(embedding_ND: FloatArray) -> bool:
    """Whether all vectors have length 1: a norm that overflows in float16 gives zeros, which a median overlooks."""
    length_N = np.sqrt(np.einsum("nd,nd->n", embedding_ND, embedding_ND, dtype=np.float64))
    return bool((np.abs(length_N - 1) < LENGTH_TOLERANCE).all())  # NaN is not


def map_loss(reference_Q: AveragePrecisions, candidate_Q: AveragePrecisions) -> MapLoss:
    """Paired over queries: what the two files share cancels, so a small loss shows with few queries."""
    value, (low, high) = mean_and_ci95(reference_Q - candidate_Q)
    return MapLoss(value=value, low=low, high=high)


def judge(agreement: Parity, loss: MapLoss | None, wanted: Thresholds) -> Verdict:
    """Holds the figures of one file against the thresholds of its precision."""
    reasons = []
    for name in ("cosine_p1", "cosine_p50"):
        figure, least = getattr(agreement, name), getattr(wanted, name)
        if least is not None and figure < least:
            reasons.append(f"{name.replace('_', ' ')} {figure:.5f} is below {least:g}")
    if loss is not None and wanted.map_loss is not None and loss.value > wanted.map_loss and loss.low > 0.0:
        reasons.append(
            f"mAP is {100 * loss.value:.2f} points [{100 * loss.low:.2f}, {100 * loss.high:.2f}] below fp32's, "
            f"more than {100 * wanted.map_loss:g}"
        )
    within = loss is None or wanted.map_loss is None or loss.value <= wanted.map_loss
    return Verdict(parity=agreement, map_loss=loss, reasons=tuple(reasons), within=within)


def require_nothing_refused(refused: Sequence[Refused]) -> None:
    """Raises CheckFailed with the figures of every refused file."""
    if refused:
        raise CheckFailed("; ".join(f"{item.precision} refused: {', '.join(item.reasons)}" for item in refused))
