"""Decides whether an exported file passes: its figures on real images are compared with the limits of its precision.

The loss of mAP is tested as in a non-inferiority trial (Piaggio et al., JAMA 308, 2012). The file passes where the
upper end of the loss's interval is within the limit. It is refused where the loss is above the limit and the lower end
above 0. Otherwise the images do not decide, and the result is "not shown".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeembed.device.bundle_schema import MapLoss, Parity
from edgeembed.errors import CheckFailed
from edgeembed.evaluation import ScoredQueries
from edgeembed.export.recipe import Thresholds
from edgeembed.intervals import mean_intervals
from edgeembed.spread import error_beside_spread

SMALLEST_LIMIT = 1e-4
"""A hundredth of a point. A limit of 0 counts as this, because no number of queries shows that nothing is lost."""
MIN_CLASSES = 40
"""With fewer classes no file passes. A loss in a tenth of all classes is then rarely missed: .9^40, 1 draw in 70."""
FEW_CLASSES = 5
"""With fewer classes, a lower end above 0 does not refuse: all of 4 classes lose by chance in .5^4 = 6 % of draws."""
RULE_OF_THREE = 3.0
"""Where none of n queries loses anything, up to 3/n of all queries may lose (95 %; Hanley and Lippman-Hand, JAMA 249,
1983). The bootstrap interval of such a sample has no width, so the gate also requires a number of queries.
"""
POWER_FACTOR = (1.96 + 0.84) / 1.96
"""A file without loss passes 8 times in 10 where the limit is 2.80 standard errors; half an interval is 1.96."""


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What was measured of one file in one runtime, and the reasons for which the gate refuses it, if any.

    `parity` is None where the embeddings are broken; `reasons` then says how.
    """

    parity: Parity | None
    map_loss: MapLoss | None
    reasons: tuple[str, ...]

    @property
    def is_broken(self) -> bool:
        """Whether the embeddings have the wrong shape, are not finite or not of unit length: nobody can accept that."""
        return self.parity is None

    @property
    def not_shown(self) -> str | None:
        """Why the images do not show that the loss of mAP is within its limit; None where it passed or is refused."""
        return None if self.reasons or self.map_loss is None else self.map_loss.not_shown

    @property
    def outcome(self) -> str:
        if self.reasons:
            return "REFUSED"
        return "passed" if self.not_shown is None else "NOT SHOWN"

    @property
    def is_within_limit(self) -> bool:
        """Whether the measured loss of mAP is within its limit, shown or by chance."""
        loss = self.map_loss
        return loss is None or loss.limit is None or loss.value <= loss.limit

    @property
    def queries_needed(self) -> int | None:
        """Matched queries that could show whether the loss is within its limit; None where the images have as many.

        Where classes are lacking, the number with which there would be enough of them, if each had as many queries.
        """
        loss = self.map_loss
        if self.not_shown is None or loss is None or loss.queries_needed is None or loss.matched_queries is None:
            return None
        if loss.classes_needed is not None and loss.classes:
            return max(loss.queries_needed, math.ceil(loss.matched_queries * loss.classes_needed / loss.classes))
        return loss.queries_needed if loss.matched_queries < loss.queries_needed else None


@dataclass(frozen=True, kw_only=True)
class RefusedFile:
    """A file that failed its gate: its precision, its name in the bundle, and every reason."""

    precision: str
    path: str
    reasons: tuple[str, ...]


def measure_map_loss(reference: ScoredQueries, candidate: ScoredQueries, limit: float | None = None) -> MapLoss:
    """Returns the loss of mAP of `candidate` against `reference`, with an interval over differences of queries.

    How difficult a query is cancels in its difference, so that few queries show a small loss.
    """
    difference_Q = reference.average_precision_Q - candidate.average_precision_Q
    # Resampled by class too: queries of one class rise and fall together.
    (intervals,) = mean_intervals(difference_Q[:, None], reference.class_Q)
    loss = MapLoss(
        value=float(difference_Q.mean()),
        ci95=intervals.wider,
        matched_queries=len(difference_Q),
        classes=len(set(reference.class_Q)),
    )
    return loss if limit is None else check_against_limit(loss, limit)


def check_against_limit(loss: MapLoss, limit: float) -> MapLoss:
    """Returns the loss with `limit`, `shown` and `queries_needed` set.

    It is shown to be within the limit where the upper end of its interval is, with enough queries and classes that a
    file which loses twice the limit in few of them is rarely missed.
    """
    num_queries, num_classes = loss.matched_queries or 0, loss.classes or 0
    is_enough = num_queries >= min_queries(limit) and num_classes >= MIN_CLASSES
    shown = loss.ci95[1] <= limit and is_enough
    return loss.model_copy(
        update={
            "limit": limit,
            "shown": shown,
            # The upper half of the interval: only the upper end is compared with the limit.
            "queries_needed": None if shown else queries_needed(num_queries, loss.ci95[1] - loss.value, limit),
            "classes_needed": None if num_classes >= MIN_CLASSES else MIN_CLASSES,
        }
    )


def min_queries(limit: float) -> int:
    """Returns the number of matched queries below which no loss is shown to be within the limit: 3 / (2 * limit).

    A loss of twice the limit is hardest to see where a share of 2 * limit of the queries loses a whole average
    precision each and the others lose nothing. A sample of this size has such a query in 95 % of draws.
    """
    return math.ceil(RULE_OF_THREE / (2 * max(limit, SMALLEST_LIMIT)))


def queries_needed(num_queries: int, half_width: float, limit: float) -> int:
    """Returns the number of matched queries with which a file without loss passes 8 times in 10, rounded up.

    The result has two significant digits. `half_width` of the interval was measured with `num_queries`. It narrows with
    the square root of their number, as long as more queries mean more classes and not larger ones.
    """
    # Two lower bounds; `GateResult.queries_needed` adds the third, which is the number of classes.
    by_spread = num_queries * (POWER_FACTOR * half_width / max(limit, SMALLEST_LIMIT)) ** 2
    needed = max(min_queries(limit), by_spread)
    # Two digits: more would promise a precision that the estimate does not have.
    unit: int = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return math.ceil(needed / unit) * unit


def apply_gate(parity: Parity, loss: MapLoss | None, thresholds: Thresholds) -> GateResult:
    """Compares the figures of one file with the thresholds of its precision, and its loss of mAP with its limit."""
    reasons = []
    # All reasons are collected, not only the first: the user sees how far off the file is.
    for name in ("cosine_p1", "cosine_p50"):
        cosine, threshold = getattr(parity, name), getattr(thresholds, name)
        if threshold is not None and cosine < threshold:
            reasons.append(f"{name.replace('_', ' ')} {cosine:.5f} is below {threshold:g}")
    if thresholds.relative_error_p50 is not None:
        reason = error_beside_spread(parity.relative_error_p50, thresholds.relative_error_p50)
        reasons += [reason] if reason else []
    if loss is not None and is_above_limit(loss):
        reasons.append(f"{loss.describe()}, more than {100 * (loss.limit or 0.0):g}")
    return GateResult(parity=parity, map_loss=loss, reasons=tuple(reasons))


def is_above_limit(loss: MapLoss) -> bool:
    """Whether the loss is above the limit and the lower end of its interval above 0.

    With fewer than FEW_CLASSES classes the lower end has to be above the limit. Used everywhere, that rule would refuse
    only half as many of the files that lose twice the limit (simulated: benchmarks/results/gate_power.md).
    """
    if loss.limit is None or loss.classes is None:
        return False
    threshold = 0.0 if loss.classes >= FEW_CLASSES else loss.limit
    return loss.value > loss.limit and loss.ci95[0] > threshold


def require_nothing_refused(refused: Sequence[RefusedFile]) -> None:
    """Raises CheckFailed with the figures of every refused file."""
    if refused:
        raise CheckFailed("; ".join(f"{item.precision} refused: {', '.join(item.reasons)}" for item in refused))
