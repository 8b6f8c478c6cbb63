"""Writes the test vectors of docs/preprocessing.md: small files of every kind, and the pixels that each becomes.

    python benchmarks/preprocessing_vectors.py

The files are drawn from a seed. `vectors.json` holds the expected network input of 8 x 12 pixels, whole.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from edgeembed.device.images import load_pixels

FOLDER = Path(__file__).parent.parent / "docs" / "preprocessing"
HEIGHT, WIDTH = 8, 12


def picture(width: int, height: int) -> Image.Image:
    """Soft patches of colour, the same each time."""
    coarse = np.random.default_rng(7).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def grey(width: int = 30, height: int = 20) -> np.ndarray:
    return np.asarray(picture(width, height).convert("L"))


def turned(path: Path, orientation: int, **options: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(30, 20).save(path, exif=exif, **options)


def with_alpha(path: Path) -> None:
    image = picture(30, 20).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path)


def with_palette(path: Path) -> None:
    picture(30, 20).quantize(16).save(path, transparency=3)


def grey_16_bit_with_key(path: Path) -> None:
    """A 16-bit grey PNG whose most frequent value is transparent; Pillow writes no such file."""
    value_HW = grey().astype(np.uint16) * 257 // 4096 * 4096
    key = int(np.bincount(value_HW.ravel()).argmax())

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", value_HW.shape[1], value_HW.shape[0], 16, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in value_HW)
    chunks = (b"IHDR", header), (b"tRNS", struct.pack(">H", key)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks))


VECTORS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "enlarged.png": ("RGB, smaller than the input", lambda path: picture(9, 6).save(path)),
    "reduced.png": ("RGB, larger than the input, other proportions", lambda path: picture(61, 47).save(path)),
    "tall.png": ("RGB, much taller than wide", lambda path: picture(7, 150).save(path)),
    "photo.jpg": ("JPEG, decoded whole and then reduced", lambda path: picture(200, 150).save(path, quality=90)),
    "turned.jpg": ("JPEG, EXIF orientation 6", lambda path: turned(path, 6, quality=95)),
    "turned.webp": ("WebP, EXIF orientation 8", lambda path: turned(path, 8, lossless=True)),
    "turned.png": ("PNG, EXIF orientation 5", lambda path: turned(path, 5)),
    "cmyk.jpg": ("CMYK JPEG, inverted as Adobe writes it", lambda path: picture(30, 20).convert("CMYK").save(path)),
    "alpha.png": ("RGBA, laid on white", with_alpha),
    "palette.png": ("palette with a transparent entry, laid on white", with_palette),
    "grey.png": ("8-bit grey", lambda path: Image.fromarray(grey()).save(path)),
    "grey16.png": (
        "16-bit grey",
        lambda path: Image.fromarray(grey().astype(np.uint16) * 257).save(path),
    ),
    "grey16_key.png": ("16-bit grey with a transparent value", grey_16_bit_with_key),
    "float.tif": (
        "float grey from 0 to 1",
        lambda path: Image.fromarray(grey().astype(np.float32) / 255).save(path),
    ),
}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    vectors = []
    for name, (what, save) in VECTORS.items():
        save(FOLDER / name)
        pixels = load_pixels(FOLDER / name, HEIGHT, WIDTH)
        vectors.append(
            {
                "file": name,
                "what": what,
                "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
                "top_left": pixels[0, 0].tolist(),
                "centre": pixels[HEIGHT // 2, WIDTH // 2].tolist(),
                "rgb_hex": pixels.tobytes().hex(),
            }
        )
    facts = {"height": HEIGHT, "width": WIDTH, "pillow": PIL.__version__, "vectors": vectors}
    (FOLDER / "vectors.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
