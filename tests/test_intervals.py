"""Bootstrap intervals by queries and by classes, against their closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from edgeembed.intervals import interval_text, mean_intervals, number_values, ratio_intervals, share_text


def test_an_interval_over_queries_is_the_normal_one_where_queries_are_independent() -> None:
    value_Q = np.random.default_rng(1).normal(0.5, 0.2, 4000)
    (intervals,) = mean_intervals(value_Q[:, None], list(range(4000)))
    half = 1.96 * value_Q.std() / np.sqrt(4000)
    assert intervals.over_queries == pytest.approx((value_Q.mean() - half, value_Q.mean() + half), abs=0.1 * half)
    assert intervals.over_classes == intervals.over_queries


def test_an_interval_over_classes_is_as_wide_as_one_over_the_class_means_where_classes_agree_within() -> None:
    mean_K = np.random.default_rng(2).normal(0.6, 0.2, 100)
    class_Q = np.repeat(np.arange(100), 25)
    (intervals,) = mean_intervals(mean_K[class_Q][:, None], class_Q.tolist())
    half = 1.96 * mean_K.std() / np.sqrt(100)
    low, high = intervals.over_classes
    assert high - low == pytest.approx(2 * half, rel=0.1)
    assert intervals.wider == intervals.over_classes
    narrow = intervals.over_queries[1] - intervals.over_queries[0]
    assert (high - low) / narrow == pytest.approx(5.0, rel=0.15)  # the square root of 25 queries a class


def test_classes_of_unequal_size_weigh_by_their_queries() -> None:
    value_Q = np.array([1.0, 1.0, 1.0, 0.0])
    (intervals,) = mean_intervals(value_Q[:, None], ["a", "a", "a", "b"])
    assert intervals.over_classes == (0.0, 1.0)


def test_a_ratio_of_proportional_figures_has_no_width() -> None:
    teacher_Q = np.random.default_rng(3).uniform(0.1, 1.0, 300)
    intervals = ratio_intervals(0.9 * teacher_Q, teacher_Q, np.repeat(np.arange(30), 10).tolist())
    assert intervals.over_queries == pytest.approx((0.9, 0.9))
    assert intervals.over_classes == pytest.approx((0.9, 0.9))


def test_resamples_without_a_denominator_are_left_out_of_a_ratio() -> None:
    intervals = ratio_intervals(np.array([0.5, 0.0]), np.array([1.0, 0.0]), ["a", "b"])
    assert intervals.wider == (0.5, 0.5)


def test_several_figures_are_resampled_together() -> None:
    value_Q = np.random.default_rng(4).uniform(size=50)
    first, second = mean_intervals(np.stack([value_Q, 1.0 - value_Q], axis=1), list(range(50)))
    assert second.over_queries == pytest.approx((1 - first.over_queries[1], 1 - first.over_queries[0]))


def test_values_are_numbered_in_order_of_appearance() -> None:
    assert number_values([("a", "x"), ("b", "x"), ("a", "x")]).tolist() == [0, 1, 0]


def test_a_share_is_written_in_percent_with_its_interval() -> None:
    assert interval_text((0.70149, 1)) == "[0.701, 1.000]"
    assert share_text(0.928, (0.915, 0.94)) == "92.8 % [91.5, 94.0]"
    assert share_text(1.0, None) == "100.0 %"


def test_no_queries_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one query"):
        mean_intervals(np.zeros((0, 1)), [])
