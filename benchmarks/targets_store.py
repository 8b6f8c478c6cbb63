"""A store of targets at size: written, opened, read at random; 1,000,000 images x 8 views x 64 numbers unless told.

Why: a student must never wait for its targets, and a store of a million images must open at once.
Usage: python benchmarks/targets_store.py [FOLDER]      needs 1 GB of disk, one process, one thread
Reads are float16 rows of drawn images of a drawn view; rates are medians over rounds. Ends with one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from edgeembed.student.targets import TargetKey, TargetStore

IMAGES, VIEWS, DIM, WRITTEN_AT_ONCE = 1_000_000, 8, 64, 65_536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    key = TargetKey(space_id="drawn", data="drawn", num_images=asked.images, dim=DIM, augmentation={"seed": 0})
    draw = np.random.default_rng(0)
    vector_BD = draw.standard_normal((WRITTEN_AT_ONCE, DIM), dtype=np.float32)
    vector_BD /= np.linalg.norm(vector_BD, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        store = TargetStore(Path(folder) / "store", key)
        started = time.perf_counter()
        for view in range(VIEWS):
            for first in range(0, asked.images, WRITTEN_AT_ONCE):
                image_B = np.arange(first, min(first + WRITTEN_AT_ONCE, asked.images))
                store.write(image_B, view, vector_BD[: image_B.size])
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
        "written_rows_per_second": round(rows / written),
        "written_and_flushed_rows_per_second": round(rows / flushed),
        "open_seconds": round(opened, 4),
        "read_rows_per_second": {batch: round(statistics.median(found)) for batch, found in rates.items()},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
