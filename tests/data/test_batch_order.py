"""Order and views of training batches: functions of (seed, step) alone, so that a run can resume at any step."""

from __future__ import annotations

import numpy as np

from edgeembed.data.batch_order import BatchOrder, EpochVisits


def test_a_run_resumed_at_any_step_gets_the_same_batches() -> None:
    order = BatchOrder(num_images=23, batch_size=5, seed=7)
    whole = order.batches(0, 12)
    assert [len(batch) for batch in whole] == [5] * 12
    for first in (1, 4, 5, 11):
        for one, other in zip(order.batches(first, 12), whole[first:], strict=True):
            assert np.array_equal(one, other)
    epoch = np.concatenate(whole[:4])
    assert len(set(epoch)) == 20
    assert not np.array_equal(whole[0], whole[4])


def test_fewer_images_than_a_batch_make_one_batch() -> None:
    assert [len(batch) for batch in BatchOrder(num_images=3, batch_size=3, seed=0).batches(0, 2)] == [3, 3]


def test_groups_are_not_mixed_in_a_batch_and_every_image_is_visited() -> None:
    group_N = np.array([0] * 13 + [1] * 3 + [2] * 8)
    order = BatchOrder(num_images=24, batch_size=4, seed=1, group_N=group_N, first_epoch=3)
    assert order.steps_per_epoch == 3 + 1 + 2
    whole = order.batches(0, 4 * 6)
    assert len(whole) == 24
    assert all(len(set(group_N[batch])) == 1 for batch in whole)
    assert sorted({len(batch) for batch in whole}) == [3, 4]
    assert set(np.concatenate(whole)) == set(range(24))
    for one, other in zip(order.batches(8, 24), whole[8:], strict=True):
        assert np.array_equal(one, other)
    assert [order.epoch(step) for step in (0, 5, 6)] == [3, 3, 4]


def test_an_image_has_another_view_at_each_visit() -> None:
    """20 images visited five times each in an epoch: 100 views, and 300 in three epochs."""
    visits = EpochVisits.from_images(np.repeat(np.arange(20), 5))
    order = BatchOrder(num_images=len(visits), batch_size=10, seed=0)
    seen = set()
    for step, number_B in enumerate(order.batches(0, 3 * order.steps_per_epoch)):
        image_B, view_B = visits.samples(number_B, order.epoch(step))
        seen |= set(zip(image_B.tolist(), view_B.tolist(), strict=True))
        if step + 1 == order.steps_per_epoch:
            assert len(seen) == 100
    assert len(seen) == 300


def test_the_view_of_an_image_that_comes_once_an_epoch_is_the_epoch() -> None:
    visits = EpochVisits.from_images(np.array([5, 2, 5, 9, 2, 5]))
    assert visits.first_view_V.tolist() == [0, 0, 1, 0, 1, 2]
    assert visits.visits_per_epoch_V.tolist() == [3, 2, 3, 1, 2, 3]
    image_B, view_B = visits.samples(np.array([3, 5, 1]), 4)
    assert image_B.tolist() == [9, 5, 2]
    assert view_B.tolist() == [4, 4 * 3 + 2, 4 * 2]
