"""Decoding of batches: files that cannot be decoded are left out and named; memory and workers give equal pixels."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgeembed.data.loader import CanvasLoader, open_canvases
from edgeembed.data.shapes import aspect_shapes, shape_of, square_shapes
from edgeembed.errors import UserError


def opened(files: list[str], size_px: int, **keys: Any) -> CanvasLoader:
    return open_canvases(files, shapes_N2=square_shapes(len(files), size_px), visits=10, **keys)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for number in range(6):
        Image.new("RGB", (30 + number, 20), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"not an image")
    return [str(tmp_path / f"{number}.png") for number in range(6)]


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


READ_UNTIL_STOPPED = """
import itertools, signal, sys
import numpy as np
from edgeembed.data.loader import open_canvases

def stop(number, frame):
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, stop)
shapes_N2 = np.full((len(sys.argv[1:]), 2), 32)
canvases = open_canvases(sys.argv[1:], shapes_N2=shapes_N2, workers=2, cache="never", visits=10**6)
for batch in canvases.batches([np.arange(len(sys.argv[1:]))] * 100_000):
    print("read", flush=True)
"""


def test_a_signal_to_the_whole_process_group_is_left_to_the_main_process(tmp_path: Path) -> None:
    files = [str(tmp_path / f"{number}.png") for number in range(4)]
    for file in files:
        Image.new("RGB", (40, 40)).save(file)
    process = subprocess.Popen(
        [sys.executable, "-c", READ_UNTIL_STOPPED, *files],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    # By then both workers have started.
    assert [process.stdout.readline() for _ in range(20)] == ["read\n"] * 20
    os.killpg(process.pid, signal.SIGTERM)  # as `timeout` and a terminal's Ctrl-C do
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "killed by signal" not in stderr  # what DataLoader says of workers that ended before it
