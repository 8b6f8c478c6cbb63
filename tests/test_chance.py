"""What a random ranking reaches: the closed form against all orders, and how it is printed."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest

from edgeembed.chance import beside_chance, describe_scores, expected_average_precision, harmonic_number
from edgeembed.metrics import average_precision, not_scored


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


def test_scores_of_an_earlier_version_have_no_chance() -> None:
    scores = {"map": 0.5, "recall_at_1": 0.25, "queries": 4, "queries_without_match": 1}
    assert describe_scores(scores, untrained=None) == (
        "mAP 0.5000, recall@1 0.2500 (4 queries, 1 of them without a match)"
    )


@pytest.mark.parametrize(
    ("intervals", "text"),
    [
        ({"ci95": (0.4, 0.6)}, "queries [0.4000, 0.6000]"),  # an earlier version
        ({"ci95": (0.4, 0.6), "ci95_queries": (0.4, 0.6), "ci95_classes": (0.45, 0.55)}, "queries [0.4000, 0.6000]"),
        ({"ci95": (0.4, 0.6), "ci95_queries": [0.4, 0.6], "ci95_classes": None}, "queries [0.4000, 0.6000]"),
        ({"ci95": (0.3, 0.7), "ci95_queries": [0.4, 0.6], "ci95_classes": [0.3, 0.7]}, "classes [0.3000, 0.7000]"),
    ],
)
def test_the_leading_interval_is_named_by_what_it_resamples(intervals: dict[str, Any], text: str) -> None:
    scores = {"map": 0.5, "recall_at_1": 0.25, "queries": 4, "queries_without_match": 0, "chance": {"map": 0.1}}
    scores |= {key: {"map": ends} for key, ends in intervals.items()}
    assert describe_scores(scores, untrained=0.2) == (
        f"mAP 0.5000 (95 % interval over {text}, chance 0.1000, untrained 0.2000), recall@1 0.2500 "
        "(4 queries, 0 of them without a match)"
    )


def test_scores_without_a_match_have_no_interval() -> None:
    for interval in (None, [None, None]):  # the latter in an earlier version
        scores = dataclasses.asdict(not_scored(3)) | {"ci95": {"map": interval}}
        assert describe_scores(scores, untrained=None) == "mAP not scored (3 queries, 3 of them without a match)"
