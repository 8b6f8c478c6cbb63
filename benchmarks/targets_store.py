"""A store of targets at size: written, opened, read at random; 1,000,000 images x 8 views x 64 numbers unless told.

Why: a student must never wait for its targets, and a store of a million images must open at once.
Usage: python benchmarks/targets_store.py [FOLDER]      needs 1 GB of disk, one process, one thread
Reads are float16 rows of drawn images of a drawn view; rates are medians over rounds. Before that, a process that
writes the same store is killed half way; another finds what it wrote, compares it and writes the rest. Ends with one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from edgeembed.student.targets.store import TargetKey, TargetStore

IMAGES, VIEWS, DIM, WRITTEN_AT_ONCE = 1_000_000, 8, 64, 65_536


def drawn_rows() -> np.ndarray:
    vector_BD = np.random.default_rng(0).standard_normal((WRITTEN_AT_ONCE, DIM), dtype=np.float32)
    return vector_BD / np.linalg.norm(vector_BD, axis=1, keepdims=True)


def write(store: TargetStore, images: int, only_missing: bool = False) -> int:
    """Writes every view; with `only_missing`, compares what is there, writes the rest and counts what was there."""
    vector_BD, found = drawn_rows(), 0
    for view in range(VIEWS):
        for first in range(0, images, WRITTEN_AT_ONCE):
            image_B = np.arange(first, min(first + WRITTEN_AT_ONCE, images))
            expected_BD = vector_BD[: image_B.size]
            if only_missing:
                stored_BD, known_B = store.read(image_B, view)
                assert np.array_equal(stored_BD[known_B], expected_BD[known_B].astype(np.float16))
                found += int(known_B.sum())
                image_B, expected_BD = image_B[~known_B], expected_BD[~known_B]
            if image_B.size:
                store.write(image_B, view, expected_BD)
    return found


def killed_and_resumed(folder: Path, key: TargetKey, images: int) -> int:
    """Rows that a killed process left; raises AssertionError where one of them is not what it wrote."""
    child = subprocess.Popen([sys.executable, __file__, str(folder), "--images", str(images), "--only-write"])
    while not (folder / f"store/view-{VIEWS // 2:04d}.safetensors").exists():
        time.sleep(0.002)
    child.kill()
    child.wait()
    store = TargetStore(folder / "store", key)
    found = write(store, images, only_missing=True)
    assert (VIEWS // 2) * images <= found < VIEWS * images
    assert store.count(VIEWS) == VIEWS * images
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only-write", action="store_true", help="write FOLDER/store and end")
    asked = parser.parse_args()
    key = TargetKey(
        space_id="drawn", data="drawn", images=None, num_images=asked.images, dim=DIM, augmentation={"seed": 0}
    )
    if asked.only_write:
        write(TargetStore(asked.folder / "store", key), asked.images)
        return
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=asked.folder) as killed:
        left = killed_and_resumed(Path(killed), key, asked.images)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        store = TargetStore(Path(folder) / "store", key)
        started = time.perf_counter()
        write(store, asked.images)
        written = time.perf_counter() - started
        store.flush()
        flushed = time.perf_counter() - started

        started = time.perf_counter()
        store = TargetStore(Path(folder) / "store", key)
        for view in range(VIEWS):
            assert store.read(np.array([asked.images - 1]), view)[1].all()
        opened = time.perf_counter() - started
        assert store.count(VIEWS) == VIEWS * asked.images

        rates: dict[int, list[float]] = {64: [], 1024: [], 65_536: []}
        for _ in range(asked.rounds):
            for batch_size, found in rates.items():
                batches = [draw.integers(0, asked.images, batch_size) for _ in range(1_000_000 // batch_size)]
                started = time.perf_counter()
                for number, image_B in enumerate(batches):
                    store.read(image_B, number % VIEWS)
                found.append(batch_size * len(batches) / (time.perf_counter() - started))
    rows = VIEWS * asked.images
    result = {
        "rows": rows,
        "bytes": rows * DIM * 2,
        "rows_kept_when_killed": left,
        "written_rows_per_second": round(rows / written),
        "written_and_flushed_rows_per_second": round(rows / flushed),
        "open_seconds": round(opened, 4),
        "read_rows_per_second": {batch: round(statistics.median(found)) for batch, found in rates.items()},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
