"""Loading: order from (seed, step) alone, files that cannot be decoded left out and named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgeembed.data.loader import Canvases, Order, Visits, open_canvases
from edgeembed.data.shapes import aspect_shapes, shape_of, square_shapes
from edgeembed.errors import UserError


def opened(files: list[str], size_px: int, **keys: Any) -> Canvases:
    return open_canvases(files, shapes_N2=square_shapes(len(files), size_px), visits=10, **keys)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for number in range(6):
        Image.new("RGB", (30 + number, 20), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"not an image")
    return [str(tmp_path / f"{number}.png") for number in range(6)]


def test_any_step_can_be_resumed() -> None:
    order = Order(num_images=23, batch_size=5, seed=7)
    whole = order.wanted(0, 12)
    assert [len(batch) for batch in whole] == [5] * 12
    for first in (1, 4, 5, 11):
        for one, other in zip(order.wanted(first, 12), whole[first:], strict=True):
            assert np.array_equal(one, other)
    epoch = np.concatenate(whole[:4])
    assert len(set(epoch)) == 20
    assert not np.array_equal(whole[0], whole[4])


def test_fewer_images_than_a_batch_make_one_batch() -> None:
    assert [len(batch) for batch in Order(num_images=3, batch_size=3, seed=0).wanted(0, 2)] == [3, 3]


@pytest.mark.parametrize(("cache", "workers"), [("always", 2), ("never", 0), ("never", 2)])
def test_a_bad_file_is_named_counted_and_left_out(
    files: list[str], cache: str, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    canvases = opened(files, 8, workers=workers, cache=cache)
    with caplog.at_level(logging.WARNING):
        first, second = canvases.batches([np.array([0, 3, 5]), np.array([3])])
    assert list(first.image_B) == [0, 5]
    assert first.canvas_BCHW.shape == (2, 3, 8, 8)
    assert first.canvas_BCHW.dtype == torch.uint8
    assert (first.canvas_BCHW[1, 0] == 200).all()
    assert second.image_B.size == 0
    assert canvases.unreadable == {3}
    if cache == "never":
        assert caplog.text.count("skipped:") == 1


def test_memory_and_workers_give_the_same_pixels(files: list[str]) -> None:
    wanted = [np.array([5, 0]), np.array([2])]
    held = list(opened(files, 12, workers=1, cache="always").batches(wanted))
    read = list(opened(files, 12, workers=2, cache="never").batches(wanted))
    for one, other in zip(held, read, strict=True):
        assert torch.equal(one.canvas_BCHW, other.canvas_BCHW)


def test_no_readable_file_at_all_is_an_error(files: list[str]) -> None:
    with pytest.raises(UserError, match="none of 1 images can be decoded"):
        opened(files[3:4], 8, workers=1, cache="always")


def test_groups_are_not_mixed_in_a_batch_and_every_image_is_visited() -> None:
    group_N = np.array([0] * 13 + [1] * 3 + [2] * 8)
    order = Order(num_images=24, batch_size=4, seed=1, group_N=group_N, first_epoch=3)
    assert order.steps_per_epoch == 3 + 1 + 2
    whole = order.wanted(0, 4 * 6)
    assert len(whole) == 24
    assert all(len(set(group_N[batch])) == 1 for batch in whole)
    assert sorted({len(batch) for batch in whole}) == [3, 4]
    assert set(np.concatenate(whole)) == set(range(24))
    for one, other in zip(order.wanted(8, 24), whole[8:], strict=True):
        assert np.array_equal(one, other)
    assert [order.epoch(step) for step in (0, 5, 6)] == [3, 3, 4]


def test_images_in_their_own_proportions(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "wide.jpg")
    Image.new("RGB", (100, 101)).save(tmp_path / "square.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (400, 200)).save(tmp_path / "turned.jpg", exif=turned)
    (tmp_path / "broken.jpg").write_bytes(b"no")
    files = [str(tmp_path / name) for name in ("wide.jpg", "square.png", "turned.jpg", "broken.jpg")]
    shapes_N2 = aspect_shapes(files, 100, workers=2)
    assert shapes_N2.tolist() == [[80, 128], [100, 100], [144, 64], [100, 100]]
    assert shape_of(1.0, 97) == (97, 97)
    canvases = open_canvases(files, shapes_N2=shapes_N2, workers=2, cache="always", visits=9)
    wide, turned_batch = canvases.batches([np.array([0]), np.array([2])])
    assert wide.canvas_BCHW.shape == (1, 3, 80, 128)
    assert turned_batch.canvas_BCHW.shape == (1, 3, 144, 64)


def test_an_image_has_another_view_at_each_visit() -> None:
    """20 images visited five times each in an epoch: 100 views, and 300 in three epochs."""
    visits = Visits.of(np.repeat(np.arange(20), 5))
    order = Order(num_images=len(visits), batch_size=10, seed=0)
    seen = set()
    for step, number_B in enumerate(order.wanted(0, 3 * order.steps_per_epoch)):
        image_B, view_B = visits.samples(number_B, order.epoch(step))
        seen |= set(zip(image_B.tolist(), view_B.tolist(), strict=True))
        if step + 1 == order.steps_per_epoch:
            assert len(seen) == 100
    assert len(seen) == 300


def test_the_view_of_an_image_that_comes_once_an_epoch_is_the_epoch() -> None:
    visits = Visits.of(np.array([5, 2, 5, 9, 2, 5]))
    assert visits.first_view_V.tolist() == [0, 0, 1, 0, 1, 2]
    assert visits.times_V.tolist() == [3, 2, 3, 1, 2, 3]
    image_B, view_B = visits.samples(np.array([3, 5, 1]), 4)
    assert image_B.tolist() == [9, 5, 2]
    assert view_B.tolist() == [4, 4 * 3 + 2, 4 * 2]
