"""What taking the most harmful operators back to float gives, with and without ONNX Runtime rounding them again.

Why: from a range for the whole, ONNX Runtime rounds float weights by itself when it loads a file; see int8_float.py.
Usage: python benchmarks/int8_float.py MODEL.onnx --images FOLDER [--calibration minmax]
MODEL: an fp32 file of a bundle. Half of 192 photographs give the ranges, the others the mean of 1 - cosine.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx

import edgeembed.export.int8 as int8
from edgeembed.export.recipe import Int8Section
from edgeembed.images import find_images, load_pixels

NUM_IMAGES = 192


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--calibration", choices=list(int8.METHODS), default="minmax")
    given = parser.parse_args()
    model = onnx.load(given.model)
    height, width = (model.graph.input[0].type.tensor_type.shape.dim[side].dim_value for side in (1, 2))
    files = find_images(given.images)
    files = files[:: max(1, len(files) // NUM_IMAGES)][:NUM_IMAGES]
    pixels_NHWC = np.stack([load_pixels(path, height, width) for path in files])
    calibration_NHWC, choosing_NHWC = pixels_NHWC[::2], pixels_NHWC[1::2]
    expected_ND = int8.embed(model, choosing_NHWC)
    held = int8.hold_in_float
    print("| in float | rounded again | held in float |\n|---|---|---|")
    columns = []
    for hold in (lambda _: None, held):
        int8.hold_in_float = hold
        with tempfile.TemporaryDirectory() as folder:
            settings = Int8Section(calibration=given.calibration)
            quantiser = int8.Quantiser(model, calibration_NHWC, Path(folder), settings)
            worst = quantiser.by_harm(given.calibration, choosing_NHWC[:32], expected_ND[:32])
            counts = [0, 1, 2, 4, 8, 16]
            columns.append(
                [
                    int8.distance(
                        quantiser.quantise(given.calibration, keep_float=worst[:count]), choosing_NHWC, expected_ND
                    )
                    for count in counts
                ]
            )
    for count, *row in zip(counts, *columns, strict=True):
        print(f"| {count} | {' | '.join(f'{value:.5f}' for value in row)} |")


if __name__ == "__main__":
    main()
