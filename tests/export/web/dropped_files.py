"""Files that people drop by mistake, or to see what happens: damaged, no image, huge, or unusual."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

REFUSED, SHOWN, EITHER = "refused", "shown", "either"


def write_dropped_files(folder: Path) -> dict[str, str]:
    """Writes the files into `folder`. Returns each name and what the page does with it; EITHER: browsers differ."""
    photograph = Image.effect_mandelbrot((300, 200), (-2, -1.3, 1, 1.3), 60).convert("RGB")
    whole = {suffix: encoded(photograph, kind) for suffix, kind in FORMATS.items()}
    drops: dict[str, tuple[bytes, str]] = {}
    for suffix, content in whole.items():
        for share in (0.02, 0.5, 0.95):
            drops[f"cut at {100 * share:.0f} %.{suffix}"] = (content[: int(share * len(content))], REFUSED)
        middle = len(content) // 2
        damaged = content[:middle] + bytes(64) + content[middle + 64 :]
        drops[f"damaged.{suffix}"] = (damaged, EITHER)
    drops |= not_images(whole) | false_sizes() | unusual(photograph)
    for name, (content, _) in drops.items():
        (folder / name).write_bytes(content)
    return {name: expected for name, (_, expected) in drops.items()}


FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP"}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def not_images(whole: dict[str, bytes]) -> dict[str, tuple[bytes, str]]:
    noise = np.random.default_rng(0).bytes(100_000)
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'
    return {
        "empty.jpg": (b"", REFUSED),
        "one byte.png": (b"\x89", REFUSED),
        "text.jpg": (b"This is no picture.\n", REFUSED),
        "page.png": (b"<!doctype html><title>no picture</title>", REFUSED),
        "drawing.svg": (svg, REFUSED),
        "drawing.png": (svg, REFUSED),
        "script.jpg": (b"<script>document.title = 'broken'</script>", REFUSED),
        "noise.jpg": (noise, REFUSED),
        "noise after a jpeg's beginning.jpg": (b"\xff\xd8\xff\xe0" + noise, REFUSED),
        "noise after a png's beginning.png": (b"\x89PNG\r\n\x1a\n" + noise, REFUSED),
        "zeros.jpg": (bytes(100_000), REFUSED),
        "document.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + noise, REFUSED),
        "archive.zip": (b"PK\x03\x04" + noise, REFUSED),
        "film.mp4": (b"\x00\x00\x00\x18ftypmp42" + noise, REFUSED),
        "jpeg called png.png": (whole["jpg"], SHOWN),
        "png called jpg.jpg": (whole["png"], SHOWN),
    }


def false_sizes() -> dict[str, tuple[bytes, str]]:
    """Small files whose header claims a huge size, or none."""
    frame = struct.pack(">HBHHB", 17, 8, 65535, 65535, 3) + bytes((1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1))
    bmp = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 2**30, 2**30, 1, 24, *[0] * 6)
    webp = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\x00" * 2
    return {
        "50000 x 50000.png": (png(50_000, 50_000, 8, 2, b""), REFUSED),
        "20000 x 20000, all there.png": (png(20_000, 20_000, 1, 0, bytes(2501 * 20_000)), REFUSED),
        "65535 x 65535.jpg": (b"\xff\xd8\xff\xc0" + frame, REFUSED),
        "65535 x 65535.gif": (b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";", REFUSED),
        "16384 x 16384.webp": (b"RIFF" + struct.pack("<I", len(webp)) + webp, REFUSED),
        "billions.bmp": (bmp, REFUSED),
        "0 x 0.png": (png(0, 0, 8, 2, b""), REFUSED),
    }


def unusual(photograph: Image.Image) -> dict[str, tuple[bytes, str]]:
    frames = [photograph.rotate(angle) for angle in (90, 180)]
    deep = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80) * 13
    exif = Image.Exif()
    exif[0x0112] = 99
    return {
        "animated.gif": (encoded(photograph, "GIF", save_all=True, append_images=frames), SHOWN),
        "animated.webp": (encoded(photograph, "WEBP", save_all=True, append_images=frames), SHOWN),
        "animated.png": (encoded(photograph, "PNG", save_all=True, append_images=frames), SHOWN),
        "cmyk.jpg": (encoded(photograph.convert("CMYK"), "JPEG"), SHOWN),
        "16 bit grey.png": (encoded(Image.fromarray(deep), "PNG"), SHOWN),
        "16 bit colour.png": (png(4, 4, 16, 2, (b"\0" + bytes(range(24))) * 4), SHOWN),
        "1 bit.png": (encoded(photograph.convert("1"), "PNG"), SHOWN),
        "1 x 1.png": (encoded(photograph.resize((1, 1)), "PNG"), SHOWN),
        "10000 x 1.png": (encoded(photograph.resize((10_000, 1)), "PNG"), SHOWN),
        "1 x 10000.jpg": (encoded(photograph.resize((1, 10_000)), "JPEG"), SHOWN),
        "60000 x 3.png": (encoded(photograph.resize((60_000, 3)), "PNG"), SHOWN),
        "no such orientation.jpg": (encoded(photograph, "JPEG", exif=exif), SHOWN),
        "clear.png": (encoded(Image.new("RGBA", (50, 50), (0, 0, 0, 0)), "PNG"), SHOWN),
        "scan.tif": (encoded(photograph, "TIFF"), EITHER),
        "jpeg 2000.jp2": (encoded(photograph, "JPEG2000"), EITHER),
        "icon.ico": (encoded(photograph, "ICO"), SHOWN),
    }


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG with correct checksums, whatever its header claims."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
