"""Images on which `edgeembed doctor` compares a bundle's files: rendered, so that they are there on every device."""

from __future__ import annotations

from PIL import Image, ImageEnhance

from edgeembed.data.synthetic import render_view

NUM_IMAGES = 64
GAINS = (1.0, 1.6, 2.2, 2.8)
"""Of the light. Noise and dim images do not show saturated int8 products, which need large activations: with 8-bit
weights on a CPU without VNNI, cosine p1 of a MobileNetV4-small is .9999 on noise, .987 on renderings in common light,
.978 on overexposed ones and .93 on photographs (ONNX Runtime)."""


def rendered_images() -> list[Image.Image]:
    """Things of all domains in front of backgrounds, half of them and more overexposed; always the same."""
    return [
        ImageEnhance.Brightness(render_view(seed=0, instance=i, view=0)).enhance(GAINS[i % len(GAINS)])
        for i in range(NUM_IMAGES)
    ]
