"""Every metric against published worked examples and against a loop that follows the definitions word for word."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgeembed import metrics
from edgeembed.errors import UserError
from edgeembed.metrics import (
    METRICS,
    average_precision,
    global_average_precision,
    not_scored,
    precision_at,
    query_values,
    retrieval_scores,
    top_k,
)

Array = np.ndarray[Any, Any]


def hits(retrieved: list[Any], relevant: set[Any]) -> Array:
    """A repeated result keeps its rank and is no second hit, as in DELF and ml_metrics."""
    return np.array([item in relevant and item not in retrieved[:rank] for rank, item in enumerate(retrieved)], bool)


def coarse_units(rng: np.random.Generator, count: int, dimensions: int = 8) -> Array:
    """Unit vectors of four +-1/2: inner products are exact multiples of 1/4, so ties abound and are real."""
    vectors = np.zeros((count, dimensions), np.float32)
    for vector in vectors:
        vector[rng.choice(dimensions, 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
    return vectors


def units(rng: np.random.Generator, count: int, dimensions: int) -> Array:
    vectors: Array = rng.normal(size=(count, dimensions)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def naive_ranking(query: Array, index: Array, own: list[bool]) -> list[int]:
    return sorted((j for j in range(len(index)) if not own[j]), key=lambda j: (-float(query @ index[j]), j))


def naive_metrics(relevance: list[bool]) -> dict[str, float] | None:
    """The five metrics of one query from its full ranking; None without a match."""
    n = sum(relevance)
    if n == 0:
        return None

    def ap(cutoff: int) -> float:
        total = 0.0
        for k in range(1, min(cutoff, len(relevance)) + 1):
            if relevance[k - 1]:
                total += sum(relevance[:k]) / k
        return total / min(n, cutoff)

    return {
        "map": ap(len(relevance)),
        "map_at_100": ap(100),
        "mp_at_5": sum(relevance[: min(n, 5)]) / min(n, 5),
        "recall_at_1": float(relevance[0]),
        "map_at_r": ap(n),
    }


def naive_means(per_query: list[dict[str, float] | None]) -> dict[str, float]:
    matched = [values for values in per_query if values is not None]
    return {name: sum(values[name] for values in matched) / len(matched) for name in METRICS}


# Worked examples of other projects


@pytest.mark.parametrize(("ignore_queries_without_truth", "expected"), [(False, 1 / 6), (True, 1 / 3)])
def test_gap_matches_delf(ignore_queries_without_truth: bool, expected: float) -> None:
    confidence, correct, has_truth = np.array([0.01, 10.0, 15.0]), np.array([False, True, False]), [True, True, False]
    keep = np.array(has_truth) if ignore_queries_without_truth else np.ones(3, bool)
    assert global_average_precision(confidence[keep], correct[keep], 3) == pytest.approx(expected)


DELF_SOLUTION: list[set[str]] = [{"10", "20"}, {"10"}, {"30", "40", "50"}, {"30"}]
DELF_PREDICTIONS: list[list[str]] = [[], ["00", "10"], ["40"], ["30", "40"]]


@pytest.mark.parametrize(("cutoff", "expected"), [(100, 0.458333), (1, 0.5)])
def test_mean_average_precision_matches_delf(cutoff: int, expected: float) -> None:
    scores = [
        average_precision(hits(got, truth), len(truth), cutoff)
        for got, truth in zip(DELF_PREDICTIONS, DELF_SOLUTION, strict=True)
    ]
    assert np.mean(scores) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("k", "expected"), [(1, 0.5), (2, 0.375)])
def test_mean_precision_matches_delf(k: int, expected: float) -> None:
    # DELF divides by k whatever the class size, which is precision_at with at least k relevant images
    scores = [precision_at(hits(got, truth), k, k) for got, truth in zip(DELF_PREDICTIONS, DELF_SOLUTION, strict=True)]
    assert np.mean(scores) == pytest.approx(expected)


@pytest.mark.parametrize(("retrieved", "cutoff", "expected"), [([6, 4, 7, 1, 2], 2, 0.25), ([1, 1, 1, 1, 1], 5, 0.2)])
def test_average_precision_matches_ml_metrics(retrieved: list[int], cutoff: int, expected: float) -> None:
    assert average_precision(hits(retrieved, {1, 2, 3, 4, 5}), 5, cutoff) == pytest.approx(expected)


def test_map_matches_torchmetrics() -> None:
    cosine = np.array([0.2, 0.3, 0.5], np.float32)
    index = np.stack([cosine, np.sqrt(1 - cosine**2)], axis=1)
    scores = retrieval_scores(np.array([[1, 0]], np.float32), index, query_label=["a"], index_label=["a", "other", "a"])
    assert scores.map == pytest.approx(0.8333, abs=1e-4)


def test_precision_at_3_divides_by_what_is_in_reach() -> None:
    relevance = [[True, False, True], [False, True, True], [True, False, False]]
    scores = [precision_at(np.array(row), n, 3) for row, n in zip(relevance, (3, 2, 2), strict=True)]
    assert np.mean(scores) == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)


def test_average_precision_without_relevant_images_is_zero() -> None:
    assert average_precision(np.zeros(3, bool), 0, 100) == 0
    assert precision_at(np.zeros(3, bool), 0, 5) == 0


def test_average_precision_can_reach_one_beyond_the_cutoff() -> None:
    assert average_precision(np.ones(150, bool), 150, 100) == pytest.approx(1.0)


# Against the loop


@pytest.mark.parametrize("num_labels", [2, 40], ids=["many relevant", "few relevant"])
@pytest.mark.parametrize("block_bytes", [1, 5000, 64 * 2**20], ids=["one query", "uneven blocks", "one block"])
@pytest.mark.parametrize("exact_ties", [True, False])
def test_scores_match_the_definitions(
    num_labels: int, block_bytes: int, exact_ties: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_BLOCK_BYTES", block_bytes)
    rng = np.random.default_rng(num_labels)
    num_queries, num_index = 60, 250
    index = coarse_units(rng, num_index) if exact_ties else units(rng, num_index, 16)
    query = coarse_units(rng, num_queries) if exact_ties else units(rng, num_queries, 16)
    query_id = np.arange(1000, 1000 + num_queries)
    index_id = np.arange(num_index)
    query[:30], query_id[:30] = index[:30], index_id[:30]  # half of the queries are in the index too
    label = [f"label {v}" for v in rng.integers(num_labels, size=num_index)]
    domain = [f"domain {v}" for v in rng.integers(3, size=num_index)]
    query_label = label[:30] + [f"label {v}" for v in rng.integers(num_labels + 20, size=30)]
    query_domain = domain[:30] + [f"domain {v}" for v in rng.integers(3, size=30)]

    per_query = []
    for q in range(num_queries):
        ranking = naive_ranking(query[q], index, [bool(index_id[j] == query_id[q]) for j in range(num_index)])
        per_query.append(naive_metrics([label[j] == query_label[q] and domain[j] == query_domain[q] for j in ranking]))
    expected_domains = {
        name: naive_means([v for v, d in zip(per_query, query_domain, strict=True) if d == name])
        for name in sorted(set(query_domain))
    }

    scores = retrieval_scores(
        query,
        index,
        query_label=query_label,
        index_label=label,
        query_domain=query_domain,
        index_domain=domain,
        query_id=query_id,
        index_id=index_id,
    )
    assert {name: getattr(scores, name) for name in METRICS} == pytest.approx(naive_means(per_query))
    assert scores.queries == num_queries
    assert scores.queries_without_match == per_query.count(None) > 0
    assert list(scores.per_domain) == list(expected_domains)
    for name, expected in expected_domains.items():
        assert scores.per_domain[name] == pytest.approx(expected)
    assert scores.domain_mean == pytest.approx(
        {name: sum(values[name] for values in expected_domains.values()) / 3 for name in METRICS}
    )


@pytest.mark.parametrize("block_bytes", [1, 64 * 2**20])
@pytest.mark.parametrize("k", [1, 7, 120])
@pytest.mark.parametrize("leave_one_out", [True, False])
def test_top_k_matches_a_stable_argsort(
    k: int, leave_one_out: bool, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_BLOCK_BYTES", block_bytes)
    image = coarse_units(np.random.default_rng(k), 120)
    similarity = image @ image.T
    identity = np.arange(120) if leave_one_out else None
    if leave_one_out:
        np.fill_diagonal(similarity, -np.inf)
    expected = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    expected_similarity = np.take_along_axis(similarity, expected, axis=1)
    expected[np.isneginf(expected_similarity)] = -1

    position, found_similarity = top_k(image, image, k, query_id=identity, index_id=identity)
    np.testing.assert_array_equal(position, expected)
    np.testing.assert_array_equal(found_similarity, expected_similarity)
    assert (position.dtype.name, found_similarity.dtype.name) == ("int64", "float32")


def test_top_k_is_the_euclidean_order() -> None:
    rng = np.random.default_rng(0)
    query, index = units(rng, 20, 16), units(rng, 300, 16)
    distance = np.linalg.norm(query[:, None].astype(np.float64) - index[None], axis=2)
    np.testing.assert_array_equal(top_k(query, index, 10)[0], np.argsort(distance, axis=1)[:, :10])


# What single rules say


@pytest.mark.parametrize("num_relevant", [3, 20])
def test_of_two_equally_near_the_earlier_in_the_index_comes_first(num_relevant: int) -> None:
    cosine = np.repeat(np.arange(num_relevant, dtype=np.float32) / 32, 2)
    index = np.stack([cosine, np.sqrt(1 - cosine**2)], axis=1)
    query = np.array([[1, 0]], np.float32)
    miss_first = retrieval_scores(query, index, query_label=["a"], index_label=["b", "a"] * num_relevant)
    hit_first = retrieval_scores(query, index, query_label=["a"], index_label=["a", "b"] * num_relevant)
    assert miss_first.map == 0.5
    assert hit_first.map == pytest.approx(np.mean([(k + 1) / (2 * k + 1) for k in range(num_relevant)]))


def test_the_same_label_in_another_domain_is_a_miss_in_one_merged_index() -> None:
    query = np.array([[1, 0]], np.float32)
    index = np.array([[1, 0], [0, 1]], np.float32)
    scores = retrieval_scores(
        query,
        index,
        query_label=["1"],
        index_label=["1", "1"],
        query_domain=["cars"],
        index_domain=["food", "cars"],
    )
    assert (scores.recall_at_1, scores.map) == (0.0, 0.5)


def test_domains_weigh_the_same_whatever_their_size() -> None:
    image = np.eye(4, dtype=np.float32)
    scores = retrieval_scores(
        image,
        image,
        query_label=["a", "b", "c", "d"],
        index_label=["a", "b", "d", "c"],
        query_domain=["big", "big", "big", "small"],
        index_domain=["big", "big", "small", "big"],
    )
    assert scores.recall_at_1 == 0.5
    assert scores.domain_mean["recall_at_1"] == pytest.approx((2 / 3 + 0) / 2)


def test_a_query_that_only_matches_itself_has_no_match() -> None:
    image = np.eye(3, dtype=np.float32)
    identity = np.arange(3)
    scores = retrieval_scores(
        image, image, query_label=["a", "a", "b"], index_label=["a", "a", "b"], query_id=identity, index_id=identity
    )
    assert (scores.queries, scores.queries_without_match) == (3, 1)
    assert scores.map == scores.map_at_100 == 1  # of the two equally far images, the first has the label


def test_without_domains_there_are_no_domain_figures() -> None:
    image = np.eye(2, dtype=np.float32)
    scores = retrieval_scores(image, image, query_label=["a", "b"], index_label=["a", "b"])
    assert (scores.per_domain, scores.domain_mean) == ({}, {})
    assert {name: getattr(scores, name) for name in METRICS} == dict.fromkeys(METRICS, 1.0)


def test_equal_confidences_keep_their_order_in_gap() -> None:
    assert global_average_precision(np.ones(2), np.array([True, False]), 1) == 1.0
    assert global_average_precision(np.ones(2), np.array([False, True]), 1) == 0.5


def test_a_query_without_a_match_changes_no_metric() -> None:
    """By hand: hits at ranks 1 and 3 of 3, and at rank 2; a third query has a label that the index lacks."""
    cosine = np.array([0.9, 0.8, 0.7], np.float32)
    index = np.stack([cosine, np.sqrt(1 - cosine**2)], axis=1)
    query = np.array([[1, 0]] * 3, np.float32)
    scores = retrieval_scores(query, index, query_label=["a", "b", "c"], index_label=["a", "b", "a"])
    of_a, of_b = (1 + 2 / 3) / 2, 1 / 2
    assert scores.figures == pytest.approx(
        {
            "map": (of_a + of_b) / 2,
            "map_at_100": (of_a + of_b) / 2,
            "mp_at_5": (1 / 2 + 0) / 2,
            "recall_at_1": 1 / 2,
            "map_at_r": (1 / 2 + 0) / 2,
        }
    )
    of_both = retrieval_scores(query[:2], index, query_label=["a", "b"], index_label=["a", "b", "a"])
    assert scores == dataclasses.replace(of_both, queries=3, queries_without_match=1)


# Confidence intervals


def half_right(num_queries: int) -> tuple[Array, Array, list[str], list[str]]:
    """Queries of which every second finds its own label first."""
    query = np.tile(np.eye(2, dtype=np.float32), (num_queries // 2, 1))
    return query, np.eye(2, dtype=np.float32), ["a"] * num_queries, ["a", "b"]


def test_ci95_is_the_binomial_interval_of_recall_at_1() -> None:
    query, index, query_label, index_label = half_right(400)
    scores = retrieval_scores(query, index, query_label=query_label, index_label=index_label, num_resamples=20_000)
    low, high = scores.ci95["recall_at_1"]
    half_width = 1.96 * np.sqrt(0.25 / 400)
    assert scores.recall_at_1 == 0.5
    assert (low, high) == pytest.approx((0.5 - half_width, 0.5 + half_width), abs=0.003)
    assert set(scores.ci95) == set(METRICS)


def test_ci95_repeats_with_its_seed_only() -> None:
    rng = np.random.default_rng(0)
    query, index = units(rng, 50, 8), units(rng, 60, 8)
    query_label, index_label = ["a"] * 50, ["a", "b"] * 30
    first, again, other = (
        retrieval_scores(query, index, query_label=query_label, index_label=index_label, seed=seed).ci95
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first["map"] != other["map"]


def test_queries_without_a_match_are_not_resampled() -> None:
    query, index, query_label, index_label = half_right(100)
    plain = retrieval_scores(query, index, query_label=query_label, index_label=index_label)
    unmatched = retrieval_scores(
        np.concatenate([query, query]), index, query_label=query_label + ["nobody"] * 100, index_label=index_label
    )
    assert unmatched.queries_without_match == 100
    assert unmatched.ci95 == plain.ci95


def naive_interval_over_classes(value_Q: Array, class_Q: list[Any], num_resamples: int) -> tuple[float, float]:
    """Draws as many classes as there are, and averages over all queries of the drawn ones."""
    draw = random.Random(0)
    names = sorted(set(class_Q))
    means = []
    for _ in range(num_resamples):
        drawn = [
            value for _ in names for name in [draw.choice(names)] for value in value_Q[[c == name for c in class_Q]]
        ]
        means.append(sum(drawn) / len(drawn))
    return tuple(np.percentile(means, (2.5, 97.5)).tolist())


def test_the_interval_over_classes_is_that_of_a_loop_which_draws_classes() -> None:
    rng = np.random.default_rng(0)
    index, query = units(rng, 60, 8), units(rng, 48, 8)
    index_label = [f"class {v}" for v in range(12)] * 5
    query_label = [f"class {v}" for v in np.sort(rng.integers(12, size=48))]  # 12 classes of unequal size
    scores = retrieval_scores(query, index, query_label=query_label, index_label=index_label, num_resamples=10_000)
    value_QM, _, _ = query_values(query, index, query_label=query_label, index_label=index_label)
    for place, name in enumerate(METRICS):
        expected = naive_interval_over_classes(value_QM[:, place], query_label, 10_000)
        width = expected[1] - expected[0]
        assert scores.ci95_classes[name] == pytest.approx(expected, abs=0.05 * width), name


def classes_that_agree(num_classes: int, queries_each: int, right: Array) -> dict[str, Any]:
    """Every query of a class finds its class first, or every one finds another class first."""
    index = np.eye(num_classes, dtype=np.float32)
    searched = np.where(right, np.arange(num_classes), (np.arange(num_classes) + 1) % num_classes)
    label = [str(one) for one in range(num_classes)]
    return {
        "query_embedding_QD": np.repeat(index[searched], queries_each, axis=0),
        "index_embedding_ND": index,
        "query_label": np.repeat(label, queries_each).tolist(),
        "index_label": label,
    }


def test_the_wider_interval_leads_and_widens_by_the_root_of_the_class_size_where_classes_agree() -> None:
    right = np.arange(200) % 2 == 0
    scores = retrieval_scores(**classes_that_agree(200, 16, right), num_resamples=4000)
    low, high = scores.ci95["recall_at_1"]
    half_width = 1.96 * np.sqrt(0.25 / 200)  # 200 independent outcomes, not 3,200
    assert (low, high) == pytest.approx((0.5 - half_width, 0.5 + half_width), abs=0.01)
    assert scores.ci95 == scores.ci95_classes
    narrow_low, narrow_high = scores.ci95_queries["recall_at_1"]
    assert (high - low) / (narrow_high - narrow_low) == pytest.approx(4, rel=0.1)


def test_with_one_query_a_class_both_intervals_are_the_same() -> None:
    scores = retrieval_scores(**classes_that_agree(50, 1, np.arange(50) % 3 == 0))
    assert scores.ci95 == scores.ci95_queries == scores.ci95_classes


def test_with_one_class_there_is_no_interval_over_classes() -> None:
    query, index, query_label, index_label = half_right(40)
    scores = retrieval_scores(query, index, query_label=query_label, index_label=index_label)
    assert scores.ci95_classes == dict.fromkeys(METRICS)
    assert scores.ci95 == scores.ci95_queries
    low, high = scores.ci95["map"]
    assert low < high


def test_a_label_in_two_domains_is_two_classes() -> None:
    index = np.eye(2, dtype=np.float32)
    query = np.repeat(index[[0, 0]], 30, axis=0)  # right for the label in domain x, wrong for that in domain y
    domains = {"query_domain": ["x"] * 30 + ["y"] * 30, "index_domain": ["x", "y"]}
    two = retrieval_scores(query, index, query_label=["a"] * 60, index_label=["a", "a"], **domains)
    named = retrieval_scores(query, index, query_label=["a"] * 30 + ["b"] * 30, index_label=["a", "b"], **domains)
    assert two.ci95_classes["recall_at_1"] == named.ci95_classes["recall_at_1"] == (0, 1)


# Limits


def test_memory_stays_bounded_on_a_large_index() -> None:
    rng = np.random.default_rng(0)
    query, index = units(rng, 2000, 8), units(rng, 50_000, 8)
    query_label = [str(v) for v in rng.integers(10_000, size=2000)]
    index_label = [str(v) for v in rng.integers(10_000, size=50_000)]
    tracemalloc.start()
    try:
        retrieval_scores(query, index, query_label=query_label, index_label=index_label, num_resamples=10)
        top_k(query, index, 10)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 2000 * 50_000 * 4 > 300e6  # so the whole matrix would not fit
    assert peak_bytes < 300e6


def test_importing_metrics_does_not_import_torch() -> None:
    check = "import sys, edgeembed.metrics; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_queries_without_a_match_leave_figures_empty_and_are_counted() -> None:
    scores = retrieval_scores(EYE, EYE, query_label=["c", "d"], index_label=["a", "b"])
    assert scores.figures == dict.fromkeys(METRICS)
    assert scores.chance == dict.fromkeys(METRICS)
    assert scores.ci95 == scores.ci95_queries == scores.ci95_classes == dict.fromkeys(METRICS)
    assert (scores.queries, scores.queries_without_match) == (2, 2)
    assert not_scored(3).queries_without_match == 3


def test_a_domain_without_a_match_is_left_out_of_the_mean_over_domains() -> None:
    scores = retrieval_scores(EYE, EYE, **LABELS, query_domain=["x", "y"], index_domain=["x", "x"])
    assert scores.map == scores.domain_mean["map"] == scores.per_domain["x"]["map"] == 1.0
    assert scores.per_domain["y"] == dict.fromkeys(METRICS)
    assert scores.queries_without_match == 1


def test_chance_is_the_mean_over_random_rankings() -> None:
    """Leave-one-out and with queries outside the index; two domains that share a label; a query without a match."""
    draw = np.random.default_rng(0)
    label = ["a", "a", "a", "b", "b", "c"]
    domain = ["x", "x", "x", "x", "y", "x"]
    sides = {"query_label": label, "index_label": label, "query_domain": domain, "index_domain": domain}
    identity = np.arange(6)
    found = []
    for _ in range(3000):
        random_ND = draw.normal(size=(6, 8)).astype(np.float32)
        scores = retrieval_scores(random_ND, random_ND, **sides, query_id=identity, index_id=identity, num_resamples=1)
        found.append([scores.figures[name] for name in METRICS])
    for name, mean in zip(METRICS, np.mean(found, axis=0), strict=True):
        assert scores.chance[name] == pytest.approx(mean, abs=0.02), name


EYE = np.eye(2, dtype=np.float32)
LABELS: dict[str, Any] = {"query_label": ["a", "b"], "index_label": ["a", "b"]}
NAN = np.array([[1, 0], [np.nan, 0]], np.float32)
INFINITE = np.array([[1, 0], [0, np.inf]], np.float32)
EMPTY = np.empty((0, 2), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: retrieval_scores(EYE, EMPTY, **LABELS), "index embeddings are empty"),
        (lambda: retrieval_scores(EMPTY, EYE, **LABELS), "query embeddings are empty"),
        (lambda: retrieval_scores(EYE[0], EYE, **LABELS), r"query embeddings have shape \(2,\)"),
        (lambda: retrieval_scores(EYE, np.eye(2, 3, dtype=np.float32), **LABELS), "2 dimensions and index .* 3"),
        (lambda: retrieval_scores(NAN, EYE, **LABELS), "query embeddings hold NaN or infinity, first in row 1"),
        (lambda: retrieval_scores(EYE, INFINITE, **LABELS), "index embeddings hold NaN or infinity"),
        (lambda: retrieval_scores(EYE, EYE, query_label=["a"], index_label=["a", "b"]), "query_label has 1 entries"),
        (lambda: retrieval_scores(EYE, EYE, query_label=["a", "b"], index_label=["a"]), "index_label has 1 entries"),
        (lambda: retrieval_scores(EYE, EYE, **LABELS, query_domain=["x", "x"]), "query_domain and index_domain"),
        (lambda: retrieval_scores(EYE, EYE, **LABELS, query_domain=["x"], index_domain=["x", "x"]), "query_domain has"),
        (lambda: retrieval_scores(EYE, EYE, **LABELS, query_id=np.arange(2)), "query_id and index_id go together"),
        (lambda: retrieval_scores(EYE, EYE, **LABELS, query_id=np.arange(2), index_id=np.arange(3)), "index_id has 3"),
        (lambda: retrieval_scores(EYE, EYE, **LABELS, num_resamples=0), "num_resamples is 0"),
        (lambda: top_k(EYE, EYE, 3), "k is 3: choose 1 to 2"),
        (lambda: top_k(EYE, EYE, 0), "k is 0: choose 1 to 2"),
        (lambda: top_k(EYE, EMPTY, 1), "index embeddings are empty"),
        (lambda: top_k(EYE, NAN, 1), "index embeddings hold NaN"),
        (lambda: global_average_precision(np.ones(2), np.ones(3, bool), 3), "one of each per prediction"),
        (lambda: global_average_precision(np.array([np.nan]), np.ones(1, bool), 1), "confidence holds NaN"),
        (lambda: global_average_precision(np.ones(2), np.ones(2, bool), 1), "num_queries_with_match is 1 with 2"),
        (lambda: global_average_precision(np.ones(1), np.zeros(1, bool), 0), "num_queries_with_match is 0"),
    ],
)
def test_a_mistake_is_named_in_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
