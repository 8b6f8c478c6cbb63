"""Passes an exported file only where real images show that it loses no more than it may, and refuses it where they
show that it loses more.

A loss of mAP is held against its limit as in a non-inferiority trial (Piaggio et al., JAMA 308, 2012): what counts is
the end of its interval. Between the two outcomes lies a third, `not shown`: too few queries to tell.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeembed.bundle import MapLoss, Parity
from edgeembed.errors import CheckFailed
from edgeembed.export.recipe import Thresholds
from edgeembed.intervals import mean_intervals
from edgeembed.spread import error_beside_spread

SMALLEST_LIMIT = 1e-4
"""A hundredth of a point: no number of queries shows that nothing at all is lost."""
LEAST_CLASSES = 40
"""Fewer show no loss to be within its limit. Of a tenth of all classes none may be among them (.9^40, 1 draw in 70)."""
FEW_CLASSES = 5
"""With fewer, every class loses by chance in .5^4 = 6 % of draws, and the lower end of the interval says little."""
RULE_OF_THREE = 3.0
"""Of n queries none lost anything: the share of those that lose may be 3/n (95 %; Hanley and Lippman-Hand, JAMA 249,
1983). The bootstrap of such a sample has no width, so the number of queries needs a limit of its own.
"""
POWER_FACTOR = (1.96 + 0.84) / 1.96
"""Half of an interval is 1.96 standard errors; 2.80 of them within the limit show a file without loss 8 times in 10."""


@dataclass(frozen=True, kw_only=True)
class AveragePrecisions:
    """Average precision of each query that has a match (Q,), and the query's class."""

    value_Q: npt.NDArray[np.float64]
    class_Q: Sequence[Hashable]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was measured of one file in one runtime, and why it is refused, if it is."""

    parity: Parity
    map_loss: MapLoss | None
    reasons: tuple[str, ...]

    @property
    def not_shown(self) -> str | None:
        """Why nobody can say whether the file loses more mAP than it may; None where it passed or is refused."""
        return None if self.reasons or self.map_loss is None else self.map_loss.not_shown

    @property
    def outcome(self) -> str:
        if self.reasons:
            return "REFUSED"
        return "passed" if self.not_shown is None else "NOT SHOWN"

    @property
    def within(self) -> bool:
        """Whether the measured loss, chance or not, is one that the file may have."""
        loss = self.map_loss
        return loss is None or loss.limit is None or loss.value <= loss.limit

    @property
    def queries_needed(self) -> int | None:
        """Matched queries of a sample that may show what this one is too small for; None where it is large enough."""
        loss = self.map_loss
        if self.not_shown is None or loss is None or loss.queries_needed is None or loss.matched_queries is None:
            return None
        return loss.queries_needed if loss.matched_queries < loss.queries_needed else None


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A file that failed its gate: what it is, its name in the bundle, and every reason."""

    precision: str
    path: str
    reasons: tuple[str, ...]


def map_loss(reference: AveragePrecisions, candidate: AveragePrecisions, limit: float | None = None) -> MapLoss:
    """Paired over queries: what the two files share cancels, so a small loss shows with few queries."""
    difference_Q = reference.value_Q - candidate.value_Q
    (intervals,) = mean_intervals(difference_Q[:, None], reference.class_Q)
    loss = MapLoss(
        value=float(difference_Q.mean()),
        ci95=intervals.wider,
        matched_queries=len(difference_Q),
        classes=len(set(reference.class_Q)),
    )
    return loss if limit is None else held_against(loss, limit)


def held_against(loss: MapLoss, limit: float) -> MapLoss:
    """Whether the loss is shown to be within the limit: the interval's upper end is, and queries and classes are so
    many that a loss of twice the limit cannot hide in those that were not drawn.
    """
    num_queries, num_classes = loss.matched_queries or 0, loss.classes or 0
    is_enough = num_queries >= least_queries(limit) and num_classes >= LEAST_CLASSES
    shown = loss.ci95[1] <= limit and is_enough
    needed = None if shown else queries_needed(num_queries, num_classes, loss.ci95[1] - loss.value, limit)
    return loss.model_copy(update={"limit": limit, "shown": shown, "queries_needed": needed})


def least_queries(limit: float) -> int:
    """Matched queries below which no loss is shown to be within the limit.

    Of files that lose twice the limit, that with the fewest wrong queries loses a whole average precision in each: a
    share of 2 * limit of all queries, of which 3 / (2 * limit) hold one in 95 % of draws.
    """
    return math.ceil(RULE_OF_THREE / (2 * max(limit, SMALLEST_LIMIT)))


def queries_needed(num_queries: int, num_classes: int, half_width: float, limit: float) -> int:
    """Matched queries with which a file without loss and of the measured spread passes 8 times in 10, two digits.

    An interval narrows with the root of their number, where classes grow in number and not in size.
    """
    by_spread = num_queries * (POWER_FACTOR * half_width / max(limit, SMALLEST_LIMIT)) ** 2
    by_classes = num_queries * LEAST_CLASSES / num_classes
    needed = max(least_queries(limit), by_spread, by_classes if num_classes < LEAST_CLASSES else 0)
    unit: int = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return math.ceil(needed / unit) * unit


def judge(agreement: Parity, loss: MapLoss | None, wanted: Thresholds) -> Verdict:
    """Holds the figures of one file against the thresholds of its precision; `loss` against its own limit."""
    reasons = []
    for name in ("cosine_p1", "cosine_p50"):
        figure, least = getattr(agreement, name), getattr(wanted, name)
        if least is not None and figure < least:
            reasons.append(f"{name.replace('_', ' ')} {figure:.5f} is below {least:g}")
    if wanted.relative_error_p50 is not None:
        beside = error_beside_spread(agreement.relative_error_p50, wanted.relative_error_p50)
        reasons += [beside] if beside else []
    if loss is not None and is_above_limit(loss):
        reasons.append(f"{loss.describe()}, more than {100 * (loss.limit or 0.0):g}")
    return Verdict(parity=agreement, map_loss=loss, reasons=tuple(reasons))


def is_above_limit(loss: MapLoss) -> bool:
    """Whether the images show a loss, and the measured one is above the limit.

    A lower end above the limit would be the mirror image of passing. In simulation it refuses half as many of the files
    that lose twice the limit, and hardly fewer of those without loss (benchmarks/results/gate_power.md).
    """
    if loss.limit is None or loss.classes is None:
        return False
    least = 0.0 if loss.classes >= FEW_CLASSES else loss.limit
    return loss.value > loss.limit and loss.ci95[0] > least


def require_nothing_refused(refused: Sequence[Refused]) -> None:
    """Raises CheckFailed with the figures of every refused file."""
    if refused:
        raise CheckFailed("; ".join(f"{item.precision} refused: {', '.join(item.reasons)}" for item in refused))
