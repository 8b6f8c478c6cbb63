"""What a random ranking reaches: the closed form against all orders, and how it is printed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from edgeembed.chance import beside_chance, expected_average_precision, harmonic_number
from edgeembed.metrics import average_precision


@pytest.mark.parametrize(("relevant", "images"), [(1, 1), (1, 2), (2, 5), (3, 6), (6, 6), (1, 7)])
@pytest.mark.parametrize("cutoff", [None, 1, 2, 4, 100])
def test_the_closed_form_is_the_mean_over_every_order(relevant: int, images: int, cutoff: int | None) -> None:
    found = []
    for places in itertools.combinations(range(images), relevant):
        hits = np.zeros(images, np.bool_)
        hits[list(places)] = True
        found.append(average_precision(hits, relevant, cutoff))
    assert expected_average_precision(relevant, images, cutoff) == pytest.approx(np.mean(found), abs=1e-12)


@pytest.mark.parametrize(("relevant", "images", "cutoff"), [(9, 400, None), (40, 400, 100), (300, 1000, 100)])
def test_it_is_the_mean_over_simulated_rankings(relevant: int, images: int, cutoff: int | None) -> None:
    draw = np.random.default_rng(0)
    hits = np.arange(images) < relevant
    found = [average_precision(draw.permutation(hits), relevant, cutoff) for _ in range(2000)]
    error = np.std(found) / math.sqrt(len(found))
    assert expected_average_precision(relevant, images, cutoff) == pytest.approx(np.mean(found), abs=4 * error)


def test_nothing_relevant_is_zero_and_large_counts_stay_exact() -> None:
    assert expected_average_precision(0, 10) == 0.0
    assert harmonic_number(100_000) == pytest.approx(math.fsum(1 / term for term in range(1, 100_001)), rel=1e-14)
    assert expected_average_precision(50, 100_000) > 50 / 100_000


def test_a_figure_is_printed_beside_what_is_known() -> None:
    assert beside_chance(0.235, chance=0.213, untrained=0.297, digits=3) == "mAP 0.235 (chance 0.213, untrained 0.297)"
    assert beside_chance(0.5, chance=0.2, untrained=None) == "mAP 0.5000 (chance 0.2000)"
    assert beside_chance(0.5, chance=None, untrained=None) == "mAP 0.5000"
    assert beside_chance(0.5, interval="interval [0.4, 0.6]", chance=0.2, untrained=None) == (
        "mAP 0.5000 (interval [0.4, 0.6], chance 0.2000)"
    )
    assert beside_chance(None, chance=0.2, untrained=0.3) == "mAP not scored"
