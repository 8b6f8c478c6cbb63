"""docs/preprocessing.md says the truth: its vectors, and its code, give the pixels that networks are fed."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest

import edgeembed
from edgeembed.device import images
from edgeembed.device.image_sources import decode_ahead
from edgeembed.device.images import load_pixels, load_rgb, squash

DOCS = Path(edgeembed.__file__).parent.parent / "docs"
FOLDER = DOCS / "preprocessing"
FACTS: dict[str, Any] = json.loads((FOLDER / "vectors.json").read_text(encoding="utf-8"))
SHAPE = (FACTS["height"], FACTS["width"])
VECTORS: dict[str, dict[str, Any]] = {vector["file"]: vector for vector in FACTS["vectors"]}
OF_MORE_BITS = {"grey16.png", "grey16_key.png", "float.tif"}


def expected_pixels(name: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(VECTORS[name]["rgb_hex"]), np.uint8).reshape(*SHAPE, 3)


def test_every_vector_is_there_and_whole() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*VECTORS, "vectors.json"}
    for name, vector in VECTORS.items():
        pixels = expected_pixels(name)
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == vector["sha256"]
        assert pixels[0, 0].tolist() == vector["top_left"]
        assert pixels[SHAPE[0] // 2, SHAPE[1] // 2].tolist() == vector["centre"]


@pytest.mark.parametrize("name", VECTORS)
def test_files_become_the_documented_pixels(name: str) -> None:
    found, expected = load_pixels(FOLDER / name, *SHAPE), expected_pixels(name)
    if FACTS["pillow"] == PIL.__version__:
        np.testing.assert_array_equal(found, expected)
    assert np.abs(found.astype(int) - expected).max() <= 2


def test_an_embedder_is_fed_the_documented_pixels() -> None:
    found = list(decode_ahead([FOLDER / name for name in VECTORS], lambda _: SHAPE))
    for name, pixels in zip(VECTORS, found, strict=True):
        np.testing.assert_array_equal(pixels, load_pixels(FOLDER / name, *SHAPE))


@pytest.mark.training
def test_evaluation_in_torch_sees_the_documented_pixels() -> None:
    from edgeembed.data.loader import load_canvas

    for name in VECTORS:
        exact = load_canvas(str(FOLDER / name), *SHAPE, reduced=False)
        np.testing.assert_array_equal(exact, load_pixels(FOLDER / name, *SHAPE))
        training = load_canvas(str(FOLDER / name), *SHAPE, reduced=True)
        assert training.shape == exact.shape


def test_the_vectors_tell_reduced_decoding_from_whole() -> None:
    reduced = squash(load_rgb(FOLDER / "photo.jpg", at_least_px=2 * max(SHAPE)), *SHAPE)
    assert np.abs(reduced.astype(int) - expected_pixels("photo.jpg")).max() > 2


@pytest.mark.parametrize("name", sorted(set(VECTORS) - OF_MORE_BITS))
def test_the_code_in_the_documentation_gives_the_same_pixels(name: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "preprocessing.md").read_text(encoding="utf-8"), re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    np.testing.assert_array_equal(namespace["pixels"](FOLDER / name, *SHAPE), load_pixels(FOLDER / name, *SHAPE))


def test_the_documented_limit_is_the_one_that_is_kept() -> None:
    assert f"{images.MAX_PIXELS:,} pixels" in (DOCS / "preprocessing.md").read_text(encoding="utf-8")
