"""Loading: order from (seed, step) alone, files that cannot be decoded left out and named."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeembed.data.loader import Order, open_squares
from edgeembed.errors import UserError


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
    squares = open_squares(files, size_px=8, workers=workers, cache=cache, visits=10)
    with caplog.at_level(logging.WARNING):
        first, second = squares.batches([np.array([0, 3, 5]), np.array([3])])
    assert list(first.image_B) == [0, 5]
    assert first.canvas_BCHW.shape == (2, 3, 8, 8)
    assert first.canvas_BCHW.dtype == torch.uint8
    assert (first.canvas_BCHW[1, 0] == 200).all()
    assert second.image_B.size == 0
    assert squares.unreadable == {3}
    if cache == "never":
        assert caplog.text.count("skipped:") == 1


def test_memory_and_workers_give_the_same_pixels(files: list[str]) -> None:
    wanted = [np.array([5, 0]), np.array([2])]
    held = list(open_squares(files, size_px=12, workers=1, cache="always", visits=10).batches(wanted))
    read = list(open_squares(files, size_px=12, workers=2, cache="never", visits=10).batches(wanted))
    for one, other in zip(held, read, strict=True):
        assert torch.equal(one.canvas_BCHW, other.canvas_BCHW)


def test_no_readable_file_at_all_is_an_error(files: list[str]) -> None:
    with pytest.raises(UserError, match="none of 1 images can be decoded"):
        open_squares(files[3:4], size_px=8, workers=1, cache="always", visits=10)
