"""Renders the images on which `edgeembed doctor` compares the files of a bundle, so that it needs no data set."""

from __future__ import annotations

from PIL import Image, ImageEnhance

from edgeembed.data.synthetic import render_view

NUM_IMAGES = 64
BRIGHTNESS_FACTORS = (1.0, 1.6, 2.2, 2.8)
"""Overexposed images have large activations, which make int8 products saturate; noise and dark images hide that error.
With 8-bit weights on a CPU without VNNI, the cosine p1 of a MobileNetV4-small is .9999 on noise, .987 on normally lit
renderings, .978 on overexposed ones and .93 on photographs (ONNX Runtime)."""


def rendered_images() -> list[Image.Image]:
    """Objects of all domains in front of backgrounds, most of them overexposed; always the same pixels."""
    return [
        ImageEnhance.Brightness(render_view(seed=0, instance=i, view=0)).enhance(
            BRIGHTNESS_FACTORS[i % len(BRIGHTNESS_FACTORS)]
        )
        for i in range(NUM_IMAGES)
    ]
