"""How far apart images lie, which errors that forgives, and which spaces are collapsed."""

from __future__ import annotations

import numpy as np
import pytest

from edgeembed.agreement import measure_agreement
from edgeembed.metrics import top_k
from edgeembed.spread import (
    MOST_RELATIVE_ERROR,
    Spread,
    collapse_warning,
    error_beside_spread,
    is_collapsed,
    relative_errors,
    spread_of,
)

DRAW = np.random.default_rng(0)


def unit(value_ND: np.ndarray) -> np.ndarray:
    length_N1 = np.linalg.norm(value_ND, axis=1, keepdims=True)
    return (value_ND / length_N1).astype(np.float32)


def cloud(count: int, *, decay: float, width: float, dim: int = 64) -> np.ndarray:
    """Unit vectors around one direction; a few axes vary where `decay` is large, and little where `width` is small."""
    scale_D = np.exp(-decay * np.arange(dim))
    scale_D /= np.linalg.norm(scale_D)
    return unit(np.eye(dim)[-1] + width * DRAW.normal(size=(count, dim)) * scale_D)


COLLAPSED, HEALTHY = cloud(300, decay=0.37, width=0.177), cloud(300, decay=0.04, width=1.0)


def with_error(embedding_ND: np.ndarray, cosine: float) -> np.ndarray:
    """The embeddings with random errors that leave about that cosine."""
    noise_ND = unit(DRAW.normal(size=embedding_ND.shape))
    return unit(embedding_ND + np.sqrt(2 * (1 - cosine)) * noise_ND)


def same_nearest(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    itself = np.arange(len(a_ND))
    a_N1, b_N1 = (top_k(each, each, 1, query_id=itself, index_id=itself)[0] for each in (a_ND, b_ND))
    return float((a_N1 == b_N1).mean())


@pytest.mark.parametrize("embedding_ND", [COLLAPSED[:20], HEALTHY[:20], unit(np.ones((2, 3)))])
def test_the_spread_is_that_of_all_pairs(embedding_ND: np.ndarray) -> None:
    found = spread_of(embedding_ND)
    cosine_NN = embedding_ND.astype(np.float64) @ embedding_ND.T
    apart = ~np.eye(len(embedding_ND), dtype=bool)
    variance_D = np.linalg.svd(embedding_ND - embedding_ND.mean(axis=0, dtype=np.float64), compute_uv=False) ** 2
    assert found is not None
    assert found.mean_cosine == pytest.approx(cosine_NN[apart].mean(), abs=1e-6)
    if variance_D.sum() > 1e-9:
        assert found.effective_dim == pytest.approx(variance_D.sum() ** 2 / (variance_D**2).sum(), rel=1e-4)


def test_one_image_or_numbers_that_are_not_finite_have_no_spread() -> None:
    assert spread_of(HEALTHY[:1]) is None
    assert spread_of(np.full((3, 4), np.nan, np.float32)) is None
    assert relative_errors(HEALTHY[:1], HEALTHY[:1]) is None
    assert measure_agreement(HEALTHY[:1], HEALTHY[:1]).relative_error_p50 is None


def test_a_high_cosine_hides_changed_neighbours_in_a_collapsed_space_and_the_relative_error_shows_them() -> None:
    collapsed, healthy = (with_error(each, 0.998) for each in (COLLAPSED, HEALTHY))
    in_collapsed, in_healthy = measure_agreement(COLLAPSED, collapsed), measure_agreement(HEALTHY, healthy)
    assert in_collapsed.cosine_p50 == pytest.approx(0.998, abs=3e-4)
    assert in_healthy.cosine_p50 == pytest.approx(0.998, abs=3e-4)
    assert same_nearest(COLLAPSED, collapsed) < 0.6 < 0.75 < same_nearest(HEALTHY, healthy)
    assert "nearest neighbours change" in str(error_beside_spread(in_collapsed.relative_error_p50))
    assert error_beside_spread(in_healthy.relative_error_p50) is None


def test_the_same_relative_error_changes_as_many_neighbours_in_both() -> None:
    kept = []
    for embedding_ND in (COLLAPSED, HEALTHY):
        spread = spread_of(embedding_ND)
        assert spread is not None
        cosine = 1 - MOST_RELATIVE_ERROR * (1 - spread.mean_cosine)
        kept.append(same_nearest(embedding_ND, with_error(embedding_ND, cosine)))
    assert kept[0] == pytest.approx(kept[1], abs=0.12)
    assert all(0.4 < share < 0.75 for share in kept)


def test_a_constant_network_is_no_division_by_zero() -> None:
    constant_ND = unit(np.ones((20, 8)))
    assert measure_agreement(constant_ND, constant_ND).relative_error_p50 == 0.0
    assert (
        error_beside_spread(measure_agreement(constant_ND, with_error(constant_ND, 0.9999)).relative_error_p50)
        is not None
    )
    assert is_collapsed(spread_of(constant_ND))


@pytest.mark.parametrize(
    ("mean_cosine", "effective_dim", "num_classes", "collapsed"),
    [
        (0.97, 2.8, 50, True),
        (0.993, 11.0, 50, True),  # untrained MobileNetV4-small
        (0.7, 2.2, 50, True),  # untrained ViT-Ti
        (0.53, 24.5, 50, False),  # a trained MobileNetV4-small on Grocery Store
        (0.5, 1.0, 2, False),  # two classes that are told apart lie on one line
        (0.3, 2.0, 5, False),
        (0.3, 1.5, 5, True),
        (0.3, 3.0, None, True),
    ],
)
def test_collapsed_is_named_with_figures_and_what_to_do(
    mean_cosine: float, effective_dim: float, num_classes: int | None, collapsed: bool
) -> None:
    spread = Spread(images=60, mean_cosine=mean_cosine, effective_dim=effective_dim)
    warning = collapse_warning("student", spread, num_classes=num_classes)
    assert (warning is not None) == collapsed
    if warning is not None:
        assert f"mean cosine {mean_cosine:.3f} between different images" in warning
        assert f"effective dimension {effective_dim:.1f}" in warning
        assert "train for more steps" in warning
    few = Spread(images=10, mean_cosine=mean_cosine, effective_dim=effective_dim)
    assert collapse_warning("student", few, num_classes=num_classes) is None
