"""Bootstrap intervals of retrieval figures, resampled by queries and by classes.

The queries of one class are searched for among the same index images and succeed or fail together, so an interval over
queries alone can be several times too narrow. An interval over classes draws whole classes, each with all its queries.
Both are Efron's percentile intervals (95 %, seeded); results show the wider of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import BeforeValidator

from edgeembed.arrays import Float64Array, IntArray

Interval: TypeAlias = tuple[float, float]
ResamplingUnit: TypeAlias = Literal["queries", "classes"]


def _none_unless_known(ends: Any) -> Any:
    return None if isinstance(ends, (list, tuple)) and None in ends else ends


OptionalInterval: TypeAlias = Annotated[Interval | None, BeforeValidator(_none_unless_known)]
"""As a pydantic model reads it from JSON: files of earlier versions hold [null, null] for an unknown interval."""

_Resampled: TypeAlias = Callable[[IntArray], Float64Array]  # (Q,) group numbers to (S, M) figures of S resamples

NUM_RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Two 95 % intervals, (low, high), of one figure."""

    over_queries: Interval
    over_classes: Interval

    @property
    def wider(self) -> Interval:
        return max(self.over_queries, self.over_classes, key=lambda interval: interval[1] - interval[0])


def mean_intervals(
    value_QM: Float64Array, class_Q: Sequence[Hashable], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> list[Intervals]:
    """Intervals of the means over queries of M figures (Q, M), such as paired differences of two networks.

    `class_Q` names the class of each query. Raises ValueError without queries.
    """
    return _both_intervals(lambda group_Q: _resampled_means(value_QM, group_Q, seed, num_resamples), class_Q)


def ratio_intervals(
    numerator_Q: Float64Array,
    denominator_Q: Float64Array,
    class_Q: Sequence[Hashable],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Intervals:
    """Intervals of mean(numerator) / mean(denominator), paired: each resample draws the same queries for both.

    Resamples whose denominator is 0 are left out. Raises ValueError without queries.
    """
    both_Q2 = np.stack([numerator_Q, denominator_Q], axis=1)  # resampled together: that pairs them

    def ratios(group_Q: IntArray) -> Float64Array:
        mean_S2 = _resampled_means(both_Q2, group_Q, seed, num_resamples)
        mean_S2 = mean_S2[mean_S2[:, 1] > 0]  # the denominator of few queries can be 0 by chance
        ratio_S1: Float64Array = mean_S2[:, :1] / mean_S2[:, 1:]
        return ratio_S1

    return _both_intervals(ratios, class_Q)[0]


def interval_text(interval: Sequence[float], *, digits: int = 3) -> str:
    """For one line of text: "[0.701, 0.768]"."""
    low, high = interval
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def share_text(share: float, interval: Sequence[float] | None) -> str:
    """A share of 0..1 in percent, with its interval where it is known: "92.8 % [91.5, 94.0]"."""
    text = f"{100 * share:.1f} %"
    return text if interval is None else f"{text} {interval_text([100 * end for end in interval], digits=1)}"


def number_values(values: Sequence[Hashable]) -> IntArray:
    """An integer for each value, the same for equal ones, from 0 in order of first appearance."""
    number_of: dict[Hashable, int] = {}
    return np.array([number_of.setdefault(value, len(number_of)) for value in values], dtype=np.int64)


def _both_intervals(resampled: _Resampled, class_Q: Sequence[Hashable]) -> list[Intervals]:
    if len(class_Q) == 0:
        raise ValueError("an interval needs at least one query")
    over_queries_M, over_classes_M = (
        np.percentile(resampled(group_Q), PERCENTILES, axis=0).T.tolist()
        for group_Q in (np.arange(len(class_Q)), number_values(class_Q))  # each query a group; each class a group
    )
    return [
        Intervals(over_queries=(queries[0], queries[1]), over_classes=(classes[0], classes[1]))
        for queries, classes in zip(over_queries_M, over_classes_M, strict=True)
    ]


def _resampled_means(value_QM: Float64Array, group_Q: IntArray, seed: int, num_resamples: int) -> Float64Array:
    """Means over the queries of each resample, (S, M).

    A resample draws as many groups as there are, with replacement, each with all its queries.
    """
    num_groups = int(group_Q.max()) + 1
    sum_GM = np.zeros((num_groups, value_QM.shape[1]))
    # Sums of each group once, so that a resample costs one product with the numbers of draws.
    np.add.at(sum_GM, group_Q, value_QM)
    size_G = np.bincount(group_Q, minlength=num_groups).astype(np.float64)
    draws = _draws(num_groups, seed, num_resamples)
    return np.stack([times_G @ sum_GM / (times_G @ size_G) for times_G in draws])


def _draws(num_groups: int, seed: int, num_resamples: int) -> Iterator[Float64Array]:
    """How often each group is drawn, (G,), in each resample."""
    rng = np.random.default_rng(seed)
    for _ in range(num_resamples):
        yield np.bincount(rng.integers(num_groups, size=num_groups), minlength=num_groups).astype(np.float64)
