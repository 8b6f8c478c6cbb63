"""Cosines between two embeddings of the same images, and outputs that no cosine describes."""

from __future__ import annotations

import numpy as np
import pytest

from edgeembed.agreement import find_defect, measure_agreement

DRAW = np.random.default_rng(0)


def unit(value_ND: np.ndarray) -> np.ndarray:
    return (value_ND / np.linalg.norm(value_ND, axis=1, keepdims=True)).astype(np.float32)


REFERENCE = unit(DRAW.normal(size=(200, 16)))
CANDIDATE = unit(REFERENCE + 0.1 * DRAW.normal(size=REFERENCE.shape))


def test_the_figures_are_those_of_all_pairs() -> None:
    found = measure_agreement(REFERENCE, CANDIDATE)
    cosine_N = [float(a.astype(np.float64) @ b) for a, b in zip(REFERENCE, CANDIDATE, strict=True)]
    assert found.images == 200
    assert found.cosine_min == pytest.approx(min(cosine_N))
    assert found.cosine_p1 == pytest.approx(np.percentile(cosine_N, 1))
    assert found.cosine_p50 == pytest.approx(np.median(cosine_N))
    assert found.max_abs == np.abs(REFERENCE - CANDIDATE).max()
    cosine_NN = REFERENCE.astype(np.float64) @ REFERENCE.T
    mean_cosine = (cosine_NN.sum() - 200) / (200 * 199)
    assert found.relative_error_p50 == pytest.approx((1 - found.cosine_p50) / (1 - mean_cosine), rel=1e-4)


def test_lengths_are_divided_out_where_that_is_asked_for() -> None:
    lengths_N1 = DRAW.uniform(0.5, 2.0, size=(200, 1)).astype(np.float32)
    plain, scaled = (
        measure_agreement(REFERENCE, candidate_ND, normalise=True)
        for candidate_ND in (CANDIDATE, lengths_N1 * CANDIDATE)
    )
    assert (plain.cosine_min, plain.cosine_p50) == pytest.approx((scaled.cosine_min, scaled.cosine_p50))
    assert measure_agreement(REFERENCE, lengths_N1 * CANDIDATE).cosine_min != pytest.approx(plain.cosine_min)


def test_a_single_image_has_a_cosine_and_no_relative_error() -> None:
    found = measure_agreement(REFERENCE[:1], CANDIDATE[:1])
    assert found.cosine_min == found.cosine_p1 == found.cosine_p50
    assert found.relative_error_p50 is None


def test_outputs_that_no_cosine_describes_are_named() -> None:
    zeros_ND = REFERENCE.copy()
    zeros_ND[7] = 0  # one vector in 200, which the 1st percentile overlooks
    assert find_defect(REFERENCE, REFERENCE.shape) is None
    assert find_defect(REFERENCE[:, :8], REFERENCE.shape) == "gives an output of shape (200, 8), expected (200, 16)"
    assert find_defect(zeros_ND) == "gives vectors of length 0.0000, expected 1"
    assert find_defect(REFERENCE * np.nan) == "gives vectors of length nan, expected 1"
    assert find_defect(REFERENCE * np.inf) is not None
