"""Embeds images with ONNX Runtime, NumPy and Pillow alone, without edgeembed: python embed.py MODEL.onnx IMAGE..."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def load_pixels(path: str, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: what edgeembed feeds the network, for files of 8 bits a channel."""
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:  # transparent pixels become white
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))


def main(model: str, paths: list[str]) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    _, height, width, _ = session.get_inputs()[0].shape
    image_NHWC = np.stack([load_pixels(path, height, width) for path in paths])
    # Unit vectors: the normalisation of the pixels and the L2 norm are inside the graph.
    (embedding_ND,) = session.run(["embedding"], {"image": image_NHWC})
    for path, embedding_D in zip(paths, embedding_ND, strict=True):
        print(path, *(f"{value:.6f}" for value in embedding_D))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
