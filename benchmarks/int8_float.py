"""Measures int8 files with depthwise convolutions in float32, with and without protection of their float weights.

Why: without it, ONNX Runtime quantises float weights by itself when it loads a file; see export/int8/float_weights.py.
Usage: python benchmarks/int8_float.py MODEL.onnx... --images FOLDER       MODEL: the fp32 file of a bundle
Prints the mean of 1 - cosine over 96 photographs; 96 others are calibrated on.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx

import edgeembed.export.int8.quantise as int8
from edgeembed.device.image_files import find_images
from edgeembed.device.images import load_pixels
from edgeembed.export.recipe import Int8Section

NUM_IMAGES = 192
METHOD = "percentile"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--images", type=Path, required=True)
    given = parser.parse_args()
    files = find_images(given.images)
    files = files[:: max(1, len(files) // NUM_IMAGES)][:NUM_IMAGES]
    print("| | all in int8 | depthwise in float32 | the same, quantised by ONNX Runtime |\n|---|---|---|---|")
    for path in given.models:
        model = onnx.load(path)
        height, width = (model.graph.input[0].type.tensor_type.shape.dim[side].dim_value for side in (1, 2))
        pixels_NHWC = np.stack([load_pixels(file, height, width) for file in files])
        expected_ND = int8.embed(model, pixels_NHWC[1::2])
        with tempfile.TemporaryDirectory() as folder:
            settings = Int8Section(calibration=METHOD)
            quantiser = int8.Quantiser(model, pixels_NHWC[::2], Path(folder), settings)
            in_int8 = quantiser.quantise(METHOD)
            protected = quantiser.quantise(METHOD, keep_float=depthwise(model))
            protect, int8.keep_float_weights = int8.keep_float_weights, lambda _: None
            unprotected = quantiser.quantise(METHOD, keep_float=depthwise(model))
            int8.keep_float_weights = protect
        found = [
            int8.mean_cosine_distance(one, pixels_NHWC[1::2], expected_ND) for one in (in_int8, protected, unprotected)
        ]
        print(f"| {path.parent.name} | {' | '.join(f'{value:.5f}' for value in found)} |")


def depthwise(model: onnx.ModelProto) -> list[str]:
    grouped = [node for node in model.graph.node for item in node.attribute if item.name == "group" and item.i > 1]
    return [node.name for node in grouped]


if __name__ == "__main__":
    main()
