"""The images on which doctor compares a bundle's files."""

from __future__ import annotations

import numpy as np

from edgeembed.data.comparison_images import NUM_IMAGES, rendered_images
from edgeembed.device.runtimes.fastest_cache import MIN_IMAGES


def test_rendered_images_are_always_the_same_and_many_are_overexposed() -> None:
    images = [np.asarray(image) for image in rendered_images()]
    assert len(images) == NUM_IMAGES >= MIN_IMAGES
    assert all(np.array_equal(image, other) for image, other in zip(images, rendered_images(), strict=True))
    white = [float((image == 255).mean()) for image in images]
    assert sum(share > 0.05 for share in white) > NUM_IMAGES / 3
    assert len({image.tobytes() for image in images}) == NUM_IMAGES
