"""The expected score of a random ranking, exactly: the figure that every retrieval score is compared with.

R of N ranked images are relevant, and all orders are equally likely.
"""

from __future__ import annotations

import functools
import math

EULER_GAMMA = 0.5772156649015329
EXACT_TERMS = 256  # from here on the error of the series is below double precision


def expected_average_precision(num_relevant: int, num_images: int, cutoff: int | None = None) -> float:
    """The mean over all N! orders of `metrics.average_precision` with the same cutoff; 0 without relevant images.

    Bestgen, "Exact Expected Average Precision of the Random Baseline for System Evaluation" (PBML 103, 2015). Rank j
    holds a relevant image with probability R/N; if it does, each of the j-1 ranks before it does with (R-1)/(N-1). So
    the expected precision there is (1 + (j-1) (R-1)/(N-1)) / j, whose sum over ranks 1..K is H_K (1-c) + K c with
    c = (R-1)/(N-1) and H_K the K-th harmonic number. K is N, or the cutoff where it is smaller.
    """
    if num_relevant == 0:
        return 0.0
    last = num_images if cutoff is None else min(cutoff, num_images)
    reachable = num_relevant if cutoff is None else min(num_relevant, cutoff)
    relevant_before = (num_relevant - 1) / (num_images - 1) if num_images > 1 else 0.0
    # The sum over ranks of the precision that is expected where the rank holds a relevant image.
    precisions = harmonic_number(last) * (1 - relevant_before) + last * relevant_before
    return num_relevant / num_images * precisions / reachable


@functools.cache
def harmonic_number(count: int) -> float:
    """1 + 1/2 + ... + 1/count; of many terms by the asymptotic series, which is exact to double precision there."""
    if count <= EXACT_TERMS:
        return sum(1.0 / term for term in range(1, count + 1))
    return math.log(count) + EULER_GAMMA + 1 / (2 * count) - 1 / (12 * count**2) + 1 / (120 * count**4)


def beside_chance(
    value: float | None, *, chance: float | None, untrained: float | None, interval: str | None = None, digits: int = 4
) -> str:
    """A mAP beside those of a random ranking and of an untrained network on the same images, for one line of text.

    Figures that are None are left out; a mAP of None reads "not scored".
    """
    if value is None:
        return "mAP not scored"
    known = [
        f"{name} {figure:.{digits}f}"
        for name, figure in (("chance", chance), ("untrained", untrained))
        if figure is not None
    ]
    beside = ", ".join([*([interval] if interval else []), *known])
    return f"mAP {value:.{digits}f}" + (f" ({beside})" if beside else "")
