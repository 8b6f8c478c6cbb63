"""The orientation is applied alone: no other tag of EXIF, odd or damaged, changes or hides a picture."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from edgeembed.device.images import ImageError, load_rgb, to_rgb
from edgeembed.device.orientation import orientation_of
from edgeembed.device.tiff import without_metadata

# Odd metadata makes Pillow warn while it opens a file; the package silences that, but tests make warnings errors.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

UPRIGHT = Image.fromarray(np.random.default_rng(3).integers(0, 256, (4, 6, 3), dtype=np.uint8)).resize((48, 32), 2)
SIDEWAYS = UPRIGHT.transpose(Image.Transpose.ROTATE_90)
Entry = tuple[int, int, int, bytes]
TURN: Entry = (0x112, 3, 1, struct.pack("<HH", 6, 0))

ODD: dict[str, list[Entry]] = {
    "nothing beside": [],
    "float": [(0x9999, 11, 1, struct.pack("<f", 1.5))],
    "rational by zero": [(0x11A, 5, 1, struct.pack("<L", 8))],
    "text for a number": [(0x11A, 2, 4, b"72\0\0")],
    "number for a text": [(0x10F, 4, 1, b"\xff" * 4)],
    "negative": [(0x213, 8, 1, struct.pack("<hh", -1, 0))],
    "large": [(0x213, 4, 1, b"\xff" * 4)],
    "unknown type": [(0x10F, 77, 1, b"abcd")],
    "text beyond the end, before it": [(0x10F, 2, 100, struct.pack("<L", 2**30))],
    "text beyond the end, behind it": [(0x131, 2, 100, struct.pack("<L", 2**30))],
    "billions of values": [(0x10F, 2, 2**31, struct.pack("<L", 8))],
    "table beyond the end": [(0x8769, 4, 1, struct.pack("<L", 2**31))],
    "table at a negative place": [(0x8769, 9, 1, struct.pack("<l", -5))],
    "text for a table": [(0x8769, 2, 4, b"ab\0\0")],
    "place table of rubbish": [(0x8825, 4, 1, struct.pack("<L", 3))],
    "all at once": [
        (0x10F, 2, 100, struct.pack("<L", 2**30)),
        (0x213, 8, 1, struct.pack("<hh", -1, 0)),
        (0x8769, 9, 1, struct.pack("<l", -5)),
    ],
}


def exif(entries: list[Entry]) -> bytes:
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHL", *entry[:3]) + entry[3] for entry in entries)
    return b"II*\0" + struct.pack("<L", 8) + body + bytes(4)


def as_jpeg(block: bytes) -> bytes:
    sink = io.BytesIO()
    SIDEWAYS.save(sink, "JPEG", quality=95)
    segment = b"Exif\0\0" + block
    return sink.getvalue()[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + sink.getvalue()[2:]


def saved(kind: str, **options: Any) -> Callable[[bytes], bytes]:
    def save(block: bytes) -> bytes:
        sink = io.BytesIO()
        SIDEWAYS.save(sink, kind, exif=b"Exif\0\0" + block if kind == "MPO" else block, **options)
        return sink.getvalue()

    return save


def as_tiff(entries: list[Entry]) -> bytes:
    """An uncompressed TIFF that Pillow did not write, with further tags."""
    pixels, (width, height) = SIDEWAYS.tobytes(), SIDEWAYS.size
    plain = {256: width, 257: height, 259: 1, 262: 2, 273: 0, 277: 3, 278: height, 279: len(pixels)}
    listed = [*entries, *((tag, 4, 1, struct.pack("<L", value)) for tag, value in plain.items())]
    bits_at = 8 + 2 + 12 * (len(listed) + 1) + 4
    places = {258: (258, 3, 3, struct.pack("<L", bits_at)), 273: (273, 4, 1, struct.pack("<L", bits_at + 6))}
    table = sorted([entry for entry in listed if entry[0] not in places] + list(places.values()), key=lambda e: e[0])
    return exif(table) + struct.pack("<HHH", 8, 8, 8) + pixels


CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "jpeg": as_jpeg,
    "png": saved("PNG"),
    "webp": saved("WEBP", quality=95),
    "mpo": saved("MPO", save_all=True, append_images=[SIDEWAYS], quality=95),
}


def assert_upright(content: bytes) -> None:
    found = np.asarray(load_rgb(io.BytesIO(content), name="x"))
    assert found.shape == (32, 48, 3)
    assert np.abs(found.astype(int) - np.asarray(UPRIGHT)).mean() < 8  # what lossy formats lose
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.open(io.BytesIO(content)))), found)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("odd", ODD)
def test_pictures_are_turned_whatever_stands_beside(odd: str, container: str) -> None:
    block = exif(sorted([TURN, *ODD[odd]], key=lambda entry: entry[0]))
    assert_upright(CONTAINERS[container](block))


@pytest.mark.parametrize("odd", ODD)
def test_tiff_files_are_turned_once_whatever_stands_beside(odd: str, tmp_path: Path) -> None:
    content = as_tiff([TURN, *ODD[odd]])
    for source in (tmp_path / "x.tif", io.BytesIO(content)):
        if isinstance(source, Path):
            source.write_bytes(content)
        np.testing.assert_array_equal(np.asarray(load_rgb(source)), np.asarray(UPRIGHT))


def test_a_tiff_of_several_pages_that_was_loaded_is_not_turned_again() -> None:
    sink = io.BytesIO()
    SIDEWAYS.save(sink, "TIFF", save_all=True, append_images=[SIDEWAYS], tiffinfo={0x112: 6})
    image = Image.open(io.BytesIO(sink.getvalue()))
    for _ in range(2):
        np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(UPRIGHT))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("block", [b"", b"II", b"rubbish" * 9, b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"])
def test_a_picture_with_a_broken_block_is_shown_as_it_is(block: bytes, container: str) -> None:
    found = np.asarray(load_rgb(io.BytesIO(CONTAINERS[container](block))))
    assert np.abs(found.astype(int) - np.asarray(SIDEWAYS)).mean() < 8


@pytest.mark.parametrize("value", [0, 9, 1000])
def test_an_orientation_that_there_is_not_turns_nothing(value: int) -> None:
    block = exif([(0x112, 3, 1, struct.pack("<HH", value, 0))])
    assert load_rgb(io.BytesIO(as_jpeg(block))).size == SIDEWAYS.size


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(orientation: int, order: str) -> None:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    block = mark + struct.pack(order + "LHHHLHHL", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    content = as_jpeg(block)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(np.asarray(load_rgb(io.BytesIO(content))), expected)


def test_the_orientation_that_imagemagick_writes_as_text_is_read() -> None:
    image = SIDEWAYS.copy()
    block = b"Exif\0\0" + exif([(0x10F, 2, 100, struct.pack("<L", 2**30)), TURN])
    image.info["Raw profile type exif"] = f"\nexif\n{len(block):8}\n{block.hex()}\n"
    assert orientation_of(image) == 6
    other = SIDEWAYS.copy()
    other.info["Raw profile type exif"] = "\nexif\n 8\nno hexadecimal\n"
    assert orientation_of(other) == 1


def test_a_tiff_whose_pixels_are_damaged_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.tif").write_bytes(as_tiff([TURN])[:400])
    with pytest.raises(ImageError, match=r"cut\.tif: not a readable image"):
        load_rgb(tmp_path / "cut.tif")


@pytest.mark.parametrize(
    "content", [b"", b"II", b"\x89PNG", b"II*\0", b"II*\0\xff\xff\xff\x7f", b"MM\0*\0\0\0\x08\0\x09"]
)
def test_what_is_no_whole_tiff_is_not_mended(content: bytes) -> None:
    assert without_metadata(io.BytesIO(content)) is None
