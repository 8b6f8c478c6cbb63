"""How often the gate passes, refuses and does not decide, for files whose true loss of mAP is known.

Why: a gate is worth something only where it hardly ever passes a file that loses more than the limit, and hardly ever
refuses one that loses nothing. Queries, or whole classes with all their queries, are drawn from the Grocery Store test
protocol, whose average precisions `gate_pairs.py` stored. The losses of a file are shifted or multiplied, so that their
mean is 0, the limit or twice the limit.
Usage: python benchmarks/gate_power.py [--draws 400] [--limit 0.005] [--sizes 16,40,100,296,1000,2000]
Prints a Markdown table in percent of draws, then one JSON object with the worst rates. For comparison, a *lenient* rule
refuses where the loss is above the limit and the interval over queries above 0, and passes everything else; a *strict*
one refuses only where the lower end of the interval is above the limit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeembed.device.bundle_schema import MapLoss, Parity
from edgeembed.export.gate import apply_gate, check_against_limit
from edgeembed.export.recipe import Thresholds
from edgeembed.intervals import mean_intervals

STORED = Path(__file__).parent / "results" / "gate_power.npz"
SIZES = (16, 40, 100, 296, 1000, 2000)
AGREES = Parity(cosine_p1=1.0, cosine_p50=1.0, max_abs=0.0)

Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A population of queries: class and loss of average precision of each, (Q,); the mean loss is the true one."""

    name: str
    times_limit: int
    lost_Q: Float64Array
    class_Q: IntArray


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Percent of draws."""

    passed: float
    refused: float
    not_shown: float
    passed_lenient: float
    refused_if_strict: float


def cases(limit: float) -> Iterator[Case]:
    """Files with a true loss of 0, 1 and 2 times the limit.

    A shift changes the loss of every query by the same amount; a factor changes it where there is one.
    """
    stored = np.load(STORED)
    class_Q = stored["class_Q"].astype(np.int64)
    lost = {name: stored["fp32"].astype(np.float64) - stored[name] for name in stored.files if name != "class_Q"}
    for times in (0, 1, 2):
        loss = times * limit
        for name in ("int8", "noise_0.05"):
            lost_Q = lost[name] - lost[name].mean() + loss
            yield Case(name=f"{name}, shifted", times_limit=times, lost_Q=lost_Q, class_Q=class_Q)
        for name in ("noise_0.03", "noise_0.05", "harmed_classes") if times else ():
            lost_Q = lost[name] * loss / lost[name].mean()
            yield Case(name=f"{name}, multiplied", times_limit=times, lost_Q=lost_Q, class_Q=class_Q)
        if times:
            yield Case(
                name="all is lost in few queries", times_limit=times, lost_Q=rare(len(class_Q), loss), class_Q=class_Q
            )
    balanced_Q = lost["harmed_classes"] * 2 * limit / lost["harmed_classes"].mean()
    yield Case(name="harmed_classes, as many gain", times_limit=0, lost_Q=balance(balanced_Q, class_Q), class_Q=class_Q)


def rare(num_queries: int, loss: float) -> Float64Array:
    """A share `loss` of the queries loses a whole average precision, the others nothing."""
    lost_Q = np.zeros(num_queries)
    lost_Q[np.random.default_rng(0).permutation(num_queries)[: round(num_queries * loss)]] = 1.0
    return lost_Q


def balance(lost_Q: Float64Array, class_Q: IntArray) -> Float64Array:
    """Turns the loss of every second class, from the largest on, into a gain, scaled so that the mean is 0."""
    mean_K = np.bincount(class_Q, weights=lost_Q) / np.bincount(class_Q)
    gains = np.argsort(-np.abs(mean_K))[1::2]
    lost_Q = np.where(np.isin(class_Q, gains), -lost_Q, lost_Q)
    is_gain_Q = lost_Q < 0
    lost_Q[is_gain_Q] *= lost_Q[~is_gain_Q].sum() / -lost_Q[is_gain_Q].sum()
    return lost_Q


def draw(case: Case, size: int, *, by_class: bool, rng: np.random.Generator) -> tuple[Float64Array, IntArray]:
    """`size` queries with replacement, or of classes that are drawn with replacement, each with all its queries."""
    if not by_class:
        drawn_Q = rng.integers(len(case.lost_Q), size=size)
        return case.lost_Q[drawn_Q], case.class_Q[drawn_Q]
    num_classes = int(case.class_Q.max()) + 1
    drawn: list[IntArray] = []
    while sum(map(len, drawn)) < size:
        drawn.append(np.flatnonzero(case.class_Q == rng.integers(num_classes)))
    number_Q = np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn])  # a class drawn twice counts as two
    return case.lost_Q[np.concatenate(drawn)][:size], number_Q[:size]


def rates(case: Case, size: int, *, by_class: bool, limit: float, draws: int) -> Rates:
    rng = np.random.default_rng([size, by_class, case.times_limit])
    count = dict.fromkeys(("passed", "REFUSED", "NOT SHOWN", "lenient", "strict"), 0)
    for number in range(draws):
        lost_Q, class_Q = draw(case, size, by_class=by_class, rng=rng)
        classes = class_Q.tolist()
        (intervals,) = mean_intervals(lost_Q[:, None], classes, seed=number, num_resamples=200)
        loss = MapLoss(
            value=float(lost_Q.mean()), ci95=intervals.wider, matched_queries=size, classes=len(set(classes))
        )
        count[apply_gate(AGREES, check_against_limit(loss, limit), Thresholds(map_loss=limit)).outcome] += 1
        count["lenient"] += not (loss.value > limit and intervals.over_queries[0] > 0.0)
        count["strict"] += loss.ci95[0] > limit
    passed, refused, not_shown, lenient, strict = (100 * number / draws for number in count.values())
    return Rates(passed=passed, refused=refused, not_shown=not_shown, passed_lenient=lenient, refused_if_strict=strict)


def simulate(sizes: Sequence[int], limit: float, draws: int) -> Iterator[tuple[Case, int, bool, Rates]]:
    for size in sizes:
        for by_class in (False, True):
            for case in cases(limit):
                yield case, size, by_class, rates(case, size, by_class=by_class, limit=limit, draws=draws)


def summary(results: Sequence[tuple[Case, int, bool, Rates]]) -> dict[str, float]:
    """The worst rates over all sizes, ways of drawing and cases."""
    return {
        "worst_false_pass": max(found.passed for case, *_, found in results if case.times_limit == 2),
        "worst_false_pass_lenient": max(found.passed_lenient for case, *_, found in results if case.times_limit == 2),
        "worst_false_refusal": max(found.refused for case, *_, found in results if case.times_limit == 0),
        "worst_pass_at_the_limit": max(found.passed for case, *_, found in results if case.times_limit == 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--limit", type=float, default=0.005)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    arguments = parser.parse_args()
    print("| queries | drawn | points lost | file | passed | refused | not shown | passed, lenient | refused, strict |")
    print(f"|{9 * '---|'}")
    results = []
    for case, size, by_class, found in simulate(
        [int(size) for size in arguments.sizes.split(",")], arguments.limit, arguments.draws
    ):
        results.append((case, size, by_class, found))
        loss = f"{100 * case.times_limit * arguments.limit:g}"
        cells = [size, "classes" if by_class else "queries", loss, case.name]
        figures = (found.passed, found.refused, found.not_shown, found.passed_lenient, found.refused_if_strict)
        print(f"| {' | '.join(map(str, [*cells, *(f'{figure:.0f}' for figure in figures)]))} |", flush=True)
    print(json.dumps({"draws": arguments.draws, "limit": arguments.limit, **summary(results)}))


if __name__ == "__main__":
    main()
