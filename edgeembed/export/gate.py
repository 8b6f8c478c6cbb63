"""Refuses an exported file that is worse than promised, measured with the file itself on real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeembed.bundle import Parity
from edgeembed.errors import CheckFailed
from edgeembed.export.recipe import Thresholds
from edgeembed.metrics import mean_and_ci95
from edgeembed.spread import error_beside_spread

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
    if wanted.relative_error_p50 is not None:
        beside = error_beside_spread(agreement.relative_error_p50, wanted.relative_error_p50)
        reasons += [beside] if beside else []
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
