"""Values become RGB by what they mean: the same picture in every mode, or a refusal that says why."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from edgeembed.device.images import ImageError, load_rgb, to_rgb
from edgeembed.errors import UserError

GREY_HW = np.asarray(Image.fromarray(np.arange(1, 26, dtype=np.uint8).reshape(5, 5) * 10).resize((40, 30), 2))
COLOUR_HW3 = np.stack([GREY_HW, GREY_HW[::-1], GREY_HW[:, ::-1]], axis=2)
Array = np.ndarray[Any, Any]


def decoded(content: bytes) -> Array:
    return np.asarray(load_rgb(io.BytesIO(content), name="x"))


def as_tiff(values: Array | Image.Image) -> bytes:
    sink = io.BytesIO()
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(sink, "TIFF")
    return sink.getvalue()


def signed_tiff(value_HW: Array) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(value_HW.view(np.uint8)).save(sink, "TIFF", tiffinfo={339: 2})
    return sink.getvalue()


def as_png(bits: int, colour_type: int, rows: list[bytes], key: bytes = b"", palette: bytes = b"") -> bytes:
    """A PNG file from its parts, as Pillow itself cannot write most of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", GREY_HW.shape[1], len(rows), bits, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"PLTE", palette), (b"tRNS", key)]
    parts += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))]
    chunks = b"".join(chunk(kind, data) for kind, data in parts if data)
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def packed_rows(values_HW: Array, bits: int) -> list[bytes]:
    """Rows of 1, 2, 4, 8 or 16 bits a value, the first in the highest bits."""
    if bits == 16:
        return [row.astype(">u2").tobytes() for row in values_HW]
    per_bit = np.unpackbits(values_HW.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
    return [np.packbits(row.ravel()).tobytes() for row in per_bit]


def grey_rgb(grey_HW: Array) -> Array:
    return np.repeat(grey_HW[..., None], 3, axis=2)


def with_tag(content: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with the 16-bit value of one of its tags replaced."""
    at = content.index(struct.pack("<HHL", tag, 3, 1))
    return content[: at + 8] + struct.pack("<H", value) + content[at + 10 :]


SCALED = {
    "float 0..1": as_tiff(GREY_HW.astype(np.float32) / 255),
    "float 0..1, resampled beyond": as_tiff((GREY_HW.astype(np.float32) / 255).clip(0, 250 / 255) * 1.0003),
    "float 0..255": as_tiff(GREY_HW.astype(np.float32)),
    "unsigned 16-bit": as_tiff(GREY_HW.astype(np.uint16) * 257),
    "unsigned 16-bit, white is zero": with_tag(as_tiff(65535 - GREY_HW.astype(np.uint16) * 257), 262, 0),
    "float, white is zero": with_tag(as_tiff(1 - GREY_HW.astype(np.float32) / 255), 262, 0),
    "8-bit values in 16 bits": as_tiff(GREY_HW.astype(np.uint16)),
    "8-bit values in signed 16 bits": as_tiff(GREY_HW.astype(np.int16)),
    "8-bit values in 32 bits": as_tiff(GREY_HW.astype(np.int32)),
    "16-bit PNG": as_png(16, 0, packed_rows(GREY_HW.astype(np.uint16) * 257, 16)),
    "16-bit PGM": b"P5 40 30 65535\n" + (GREY_HW.astype(np.uint16) * 257).astype(">u2").tobytes(),
}


@pytest.mark.parametrize("kind", SCALED)
def test_grey_of_more_bits_is_its_8_bit_self(kind: str) -> None:
    assert np.abs(decoded(SCALED[kind]).astype(int) - grey_rgb(GREY_HW)).max() <= (1 if "resampled" in kind else 0)


def test_grey_of_12_bits_is_scaled_by_its_own_white() -> None:
    value_HW = np.rint(GREY_HW.astype(np.float64) * 4095 / 255).astype(np.uint16)
    pairs = value_HW.reshape(30, 20, 2)
    packed = np.stack(
        [pairs[..., 0] >> 4, (pairs[..., 0] & 15) << 4 | pairs[..., 1] >> 8, pairs[..., 1] & 255], axis=-1
    ).astype(np.uint8)
    tags = {256: 40, 257: 30, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 8 * 12 + 4, 278: 30, 279: packed.size}
    table = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<LH", 8, len(tags)) + table + bytes(4) + packed.tobytes()
    assert np.abs(decoded(content).astype(int) - grey_rgb(GREY_HW)).max() <= 1


REFUSED = {
    "float beyond 255": GREY_HW.astype(np.float32) * 257,
    "float 0..2": GREY_HW.astype(np.float32) / 127.5,
    "float -1..1": GREY_HW.astype(np.float32) / 127.5 - 1,
    "float with NaN": np.where(GREY_HW[0, 0] == GREY_HW, np.nan, GREY_HW / 255).astype(np.float32),
    "float with infinity": np.where(GREY_HW[0, 0] == GREY_HW, np.inf, GREY_HW / 255).astype(np.float32),
    "signed 16-bit": GREY_HW.astype(np.int16) * 128,
    "signed 16-bit below zero": GREY_HW.astype(np.int16) - 128,
    "32-bit": GREY_HW.astype(np.int32) * 2**23,
    "16-bit values in 32 bits": GREY_HW.astype(np.int32) * 257,
    "32-bit below zero": GREY_HW.astype(np.int32) - 128,
}


@pytest.mark.parametrize("kind", REFUSED)
def test_values_whose_white_is_not_known_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "deep.tif").write_bytes(as_tiff(REFUSED[kind]))
    with pytest.raises(ImageError, match=r"deep\.tif: .*(which value is white|not a number)"):
        load_rgb(tmp_path / "deep.tif")


@pytest.mark.parametrize("least", [1, 118])
def test_signed_8_bit_values_below_zero_are_refused_by_name(least: int) -> None:
    signed_HW = (GREY_HW.astype(np.int16) - 128).clip(-least, 127).astype(np.int8)
    with pytest.raises(ImageError, match=f"x: signed 8-bit values from -{least} to .*unsigned 8 bits"):
        load_rgb(io.BytesIO(signed_tiff(signed_HW)), name="x")


def test_signed_8_bit_values_from_0_are_the_grey_that_they_say() -> None:
    np.testing.assert_array_equal(decoded(signed_tiff((GREY_HW >> 1).view(np.int8))), grey_rgb(GREY_HW >> 1))


def test_a_16_bit_png_that_an_older_pillow_opens_in_32_bits_is_scaled_when_turned_too() -> None:
    image = Image.fromarray(GREY_HW.astype(np.int32) * 257)
    image.format = "PNG"
    image.getexif()[0x0112] = 3  # upside down
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.rot90(grey_rgb(GREY_HW), 2))


def test_a_black_float_image_is_black() -> None:
    assert decoded(as_tiff(np.zeros((4, 4), np.float32))).max() == 0


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_becomes_white_and_no_other(bits: int) -> None:
    value_HW = GREY_HW.astype(np.uint16) * 257 if bits == 16 else GREY_HW >> (8 - bits)
    key = int(value_HW[0, 0])
    grey_HW = GREY_HW if bits == 16 else (value_HW * (255 // (2**bits - 1))).astype(np.uint8)
    content = as_png(bits, 0, packed_rows(value_HW, bits), struct.pack(">H", key))
    expected = grey_rgb(np.where(value_HW == key, 255, grey_HW))
    np.testing.assert_array_equal(decoded(content), expected)
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.open(io.BytesIO(content)))), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_transparent_colour_of_a_png_becomes_white_and_no_other(bits: int) -> None:
    scale = 257 if bits == 16 else 1
    value_HW3 = COLOUR_HW3.astype(np.uint16) * scale
    key = value_HW3[3, 5]
    content = as_png(bits, 2, packed_rows(value_HW3, bits), struct.pack(">HHH", *key.tolist()))
    is_key_HW = (value_HW3 == key).all(axis=2)
    np.testing.assert_array_equal(decoded(content), np.where(is_key_HW[..., None], 255, COLOUR_HW3))
    assert is_key_HW.any()


def test_transparent_palettes_are_laid_on_white() -> None:
    palette = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]], np.uint8)
    number_HW = GREY_HW % 4
    alpha = np.array([255, 0, 128, 255])
    content = as_png(8, 3, packed_rows(number_HW, 8), bytes(alpha.astype(np.uint8)), palette.tobytes())
    share = (alpha / 255)[number_HW][..., None]
    expected = palette[number_HW] * share + 255 * (1 - share)
    assert np.abs(decoded(content) - expected).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colour_type", [4, 6])
def test_alpha_channels_are_laid_on_white(bits: int, colour_type: int) -> None:
    colour = GREY_HW[..., None] if colour_type == 4 else COLOUR_HW3
    value = np.concatenate([colour, GREY_HW[::-1, ::-1, None]], axis=2).astype(np.uint16) * (257 if bits == 16 else 1)
    share = GREY_HW[::-1, ::-1, None] / 255
    expected = colour * share + 255 * (1 - share)
    found = decoded(as_png(bits, colour_type, packed_rows(value, bits)))
    assert np.abs(found - expected).max() <= 1.5


@pytest.mark.parametrize(
    ("mode", "tolerance"), [("RGBA", 0), ("RGBa", 0), ("RGBX", 0), ("CMYK", 0), ("YCbCr", 3), ("HSV", 8)]
)
def test_pil_images_of_colour_modes_keep_their_colours(mode: str, tolerance: int) -> None:
    found = np.asarray(to_rgb(Image.fromarray(COLOUR_HW3).convert(mode)))
    assert np.abs(found.astype(int) - COLOUR_HW3).max() <= tolerance


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA"])
def test_pil_images_of_few_colours_are_what_pillow_shows(mode: str) -> None:
    image = Image.fromarray(COLOUR_HW3)
    steps = {"La": ["LA", "La"], "PA": ["P", "PA"]}.get(mode, [mode])
    for step in steps:
        image = image.convert(step)
    shown = image.convert("LA") if mode == "La" else image
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(shown.convert("RGB")))


def test_lab_becomes_rgb() -> None:
    muted = Image.fromarray((COLOUR_HW3 // 4 + 96).astype(np.uint8))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.applyTransform(muted, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    assert lab is not None
    for found in (np.asarray(to_rgb(lab)), decoded(as_tiff(lab))):
        assert np.abs(found.astype(int) - np.asarray(muted)).max() <= 4


def test_inverted_cmyk_of_adobe_is_told_from_its_marker() -> None:
    sink = io.BytesIO()
    Image.fromarray(COLOUR_HW3).convert("CMYK").save(sink, "JPEG", quality=98, subsampling=0)
    assert b"Adobe" in sink.getvalue()
    assert np.abs(decoded(sink.getvalue()).astype(int) - COLOUR_HW3).max() <= 6


@pytest.mark.parametrize(("mode", "key"), [("RGB", 7), ("CMYK", 7), ("RGBA", 7)])
def test_a_transparent_colour_of_another_mode_means_nothing(mode: str, key: object) -> None:
    image = Image.new(mode, (4, 4))
    image.info["transparency"] = key
    assert to_rgb(image).mode == "RGB"


@pytest.mark.parametrize(("mode", "key"), [("L", "x"), ("1", "x"), ("P", "x")])
def test_a_transparent_colour_that_pillow_cannot_read_is_refused_by_the_mode(mode: str, key: object) -> None:
    image = Image.new(mode, (4, 4))
    image.info["transparency"] = key
    with pytest.raises(UserError, match=f"mode {mode} cannot become RGB"):
        to_rgb(image)
