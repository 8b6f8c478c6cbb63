"""Decoding: every mode becomes upright RGB; what is no whole image is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeembed.device import images
from edgeembed.device.images import ImageError, load_pixels, load_rgb


def gradient(width: int = 60, height: int = 40) -> Image.Image:
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    return Image.fromarray(np.stack([x, x[:, ::-1], x * 0 + 90], axis=2).astype(np.uint8))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "jpg"), ("CMYK", "jpg"), ("L", "jpg"), ("P", "png"), ("L", "png")]
)
def test_modes_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    gradient().convert(mode).save(path)
    image = load_rgb(path)
    assert (image.mode, image.size) == ("RGB", (60, 40))
    if mode in ("RGB", "CMYK"):
        assert np.abs(np.asarray(image, float) - np.asarray(gradient(), float)).mean() < 8


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (np.asarray(load_rgb(tmp_path / "clear.png")) == 255).all()
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    palette.save(tmp_path / "p.png", transparency=0)
    assert (np.asarray(load_rgb(tmp_path / "p.png")) == 255).all()


def test_sixteen_bit_grey_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(load_rgb(tmp_path / "deep.png"))[0, 0].tolist() == [127, 127, 127]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    gradient().save(tmp_path / "turned.jpg", exif=exif)
    assert load_rgb(tmp_path / "turned.jpg").size == (40, 60)


def test_bad_files_are_refused_by_name(tmp_path: Path) -> None:
    gradient(300, 300).save(tmp_path / "whole.jpg", quality=95)
    whole = (tmp_path / "whole.jpg").read_bytes()
    for name, content in {"cut.jpg": whole[: len(whole) // 2], "text.png": b"hello", "none.gif": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=name):
            load_pixels(tmp_path / name, 16, 16)
    with pytest.raises(ImageError, match="no such file"):
        load_rgb(tmp_path / "missing.jpg")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient().save(tmp_path / "x.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="more than the limit of 100"):
        load_rgb(tmp_path / "x.png")


def test_reduced_jpeg_decoding_stays_close_to_full(tmp_path: Path) -> None:
    gradient(800, 600).save(tmp_path / "big.jpg", quality=95)
    reduced = load_rgb(tmp_path / "big.jpg", at_least_px=128)
    assert (reduced.width, reduced.height) == (200, 150)
    full = load_pixels(tmp_path / "big.jpg", 64, 64).astype(float)
    assert np.abs(images.squash(reduced, 64, 64) - full).mean() < 1.0


def test_a_network_s_input_is_computed_from_all_pixels(tmp_path: Path) -> None:
    gradient(800, 600).save(tmp_path / "big.jpg", quality=95)
    with Image.open(tmp_path / "big.jpg") as image:
        expected = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(load_pixels(tmp_path / "big.jpg", 64, 64), expected)
