"""Random image files as cameras, scanners and scripts write them, with the pixels that each must give.

Each sample is one picture in several files. A file gives the picture's pixels, or what its variant makes of them, or is
refused by its name. Pixels come from `edgeembed.device.images`, in this process; now and then the folder is embedded
too.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from random_samples import REFUSED, RIGHT, WRONG, Outcome, command, picture

SIDE = 64
LEAST_COSINE, MOST_DIFFERENCE = 0.98, 12.0
# fmt: off
TRANSPOSED = {  # what a camera stores, so that a viewer that follows the tag shows it upright (EXIF 2.3, 4.6.4A)
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
# fmt: on

SAME, REFUSE, EITHER = "same", "refuse", "same or refuse"
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A file's bytes, and what is right for it; `expected` is the upright 8-bit RGB picture where it gives pixels."""

    kind: str
    suffix: str
    content: bytes
    fate: str = SAME
    expected: Image.Image | None = None
    most_difference: float = MOST_DIFFERENCE


def encoded(image: Image.Image, name: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, name, **options)
    return stream.getvalue()


def exif_block(rng: random.Random, orientation: int) -> bytes:
    """TIFF structure with the orientation and one to three odd tags, in either byte order."""
    order = rng.choice(["<", ">"])
    entries = [(0x112, 3, 1, struct.pack(f"{order}HH", orientation, 0))]
    odd = [
        (0x100, 11, 1, struct.pack(f"{order}f", 1.5)),  # a width in float
        (0x101, 2, 4, b"640\0"),  # a height in text
        (0x11A, 2, 4, b"72\0\0"),  # a resolution in text
        (0x11B, 5, 1, struct.pack(f"{order}I", 0xFFFFFFF0)),  # a value that lies beyond the end
        (0x128, 1, 4, b"\1\2\3\4"),
        (0x132, 2, 2000, struct.pack(f"{order}I", 4000)),
        (0x213, 4, 1, struct.pack(f"{order}I", 0xFFFFFFFF)),
        (0x213, 8, 1, struct.pack(f"{order}hh", -1, 0)),
        (0x9286, 7, 4, b"\xff\xfe\0\0"),
        (0x8769, 4, 1, struct.pack(f"{order}I", 8)),  # a sub-table that is the table itself
        (0xFFFE, 99, 1, b"\0\0\0\0"),  # a type that does not exist
    ]
    entries = sorted([*entries, *rng.sample(odd, rng.randint(0, 3))], key=lambda entry: entry[0])
    table = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return head + struct.pack(f"{order}H", len(entries)) + table + bytes(4)


def orientation(rng: random.Random, image: Image.Image) -> Variant:
    turn = rng.randint(1, 8)
    stored = image if TRANSPOSED[turn] is None else image.transpose(TRANSPOSED[turn])  # type: ignore[arg-type]
    block = exif_block(rng, turn)
    name = rng.choice(["JPEG", "JPEG", "PNG", "WEBP"])
    options: dict[str, Any] = {"exif": b"Exif\0\0" + block}
    options |= {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}}[name]
    return Variant(
        kind="EXIF orientation with odd tags",
        suffix=name.lower(),
        content=encoded(stored, name, **options),
        expected=image,
    )


def no_orientation(rng: random.Random, image: Image.Image) -> Variant:
    content = encoded(image, "JPEG", quality=95, exif=b"Exif\0\0" + exif_block(rng, rng.choice([0, 9, 4660])))
    return Variant(kind="EXIF orientation that does not exist", suffix="jpg", content=content, expected=image)


def orientation_in_tiff(rng: random.Random, image: Image.Image) -> Variant:
    turn = rng.randint(1, 8)
    stored = image if TRANSPOSED[turn] is None else image.transpose(TRANSPOSED[turn])  # type: ignore[arg-type]
    content = encoded(stored, "TIFF", tiffinfo={274: turn})
    return Variant(kind="orientation in TIFF", suffix="tif", content=content, expected=image)


def mode(rng: random.Random, image: Image.Image) -> Variant:
    name = rng.choice(["L", "P", "1", "CMYK", "YCbCr", "LA opaque", "RGBA opaque", "I;16", "PA", "RGB;16"])
    if name == "I;16":
        grey = image.convert("L")
        values = np.asarray(grey, np.uint16) * 257
        container = rng.choice(["PNG", "TIFF"])
        return Variant(
            kind="mode I;16",
            suffix=container.lower(),
            content=encoded(Image.fromarray(values), container),
            expected=grey.convert("RGB"),
        )
    if name == "RGB;16":
        rows = (np.asarray(image, np.uint16) * 257).astype(">u2")
        return Variant(kind="mode RGB;16", suffix="png", content=png(rows, colour=2, depth=16), expected=image)
    if name in ("LA opaque", "RGBA opaque", "PA"):
        converted = image.convert({"LA opaque": "LA", "RGBA opaque": "RGBA", "PA": "P"}[name])
        fate = EITHER if name == "PA" else SAME
        return Variant(
            kind=f"mode {name}",
            suffix="png",
            content=encoded(converted, "PNG"),
            fate=fate,
            expected=converted.convert("RGB"),
        )
    converted = image.convert(name)
    container = {"CMYK": rng.choice(["JPEG", "TIFF"]), "YCbCr": "TIFF"}.get(name, rng.choice(["PNG", "TIFF"]))
    options = {"quality": 95} if container == "JPEG" else {}
    return Variant(
        kind=f"mode {name}",
        suffix=container.lower(),
        content=encoded(converted, container, **options),
        expected=converted.convert("RGB"),
        most_difference=20 if name == "CMYK" else MOST_DIFFERENCE,
    )


def float_or_integer(rng: random.Random, image: Image.Image) -> Variant:
    """Grey in 32 bits: its white is 1 or 255 or not known, and then a refusal by name is right too."""
    grey = image.convert("L")
    values = np.asarray(grey).astype(np.float32)
    name, stored, fate = rng.choice(
        [
            ("mode F, 0 to 1", values / 255, SAME),
            ("mode F, 0 to 255", values, EITHER),
            ("mode F, -1 to 1", values / 127.5 - 1, EITHER),
            ("mode F, 0 to 65535", values * 257, EITHER),
            ("mode F with NaN", np.where(values == values.max(), np.nan, values / 255), REFUSE),
            ("mode I, 0 to 255", values.astype(np.int32), EITHER),
            ("mode I, 0 to 65535", (values * 257).astype(np.int32), EITHER),
            ("mode I, signed", (values * 257 - 32768).astype(np.int32), EITHER),
            ("mode I, large", (values * 2**22).astype(np.int32), EITHER),
        ]
    )
    return Variant(
        kind=name,
        suffix="tif",
        content=encoded(Image.fromarray(stored), "TIFF"),
        fate=fate,
        expected=grey.convert("RGB"),
    )


def transparency(rng: random.Random, image: Image.Image) -> Variant:
    """On white, computed here: value * alpha + 255 * (1 - alpha)."""
    name = rng.choice(
        ["RGBA", "LA", "P", "L with tRNS", "RGB with tRNS", "16-bit grey with tRNS", "16-bit RGB with tRNS"]
    )
    kind, width, height = f"transparency: {name}", image.width, image.height
    if name in ("RGBA", "LA"):
        colour = image if name == "RGBA" else image.convert("L")
        alpha = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
        layered = colour.copy()
        layered.putalpha(Image.fromarray(alpha))
        share = alpha[..., None].astype(np.float32) / 255
        white = np.asarray(colour.convert("RGB")) * share + 255 * (1 - share)
        return Variant(
            kind=kind,
            suffix="png",
            content=encoded(layered, rng.choice(["PNG", "TIFF"])),
            expected=Image.fromarray(white.round().astype(np.uint8)),
        )
    if name == "P":
        indexed = image.quantize(16)
        pixels = np.asarray(indexed.convert("RGB")).copy()
        pixels[np.asarray(indexed) == 3] = 255
        return Variant(
            kind=kind,
            suffix="png",
            content=encoded(indexed, rng.choice(["PNG", "GIF"]), transparency=3),
            expected=Image.fromarray(pixels),
        )
    pixels = np.asarray(image if "RGB" in name else image.convert("L")).copy()
    pixels[: height // 3] = pixels[0, 0]  # the transparent colour, in a part of the picture
    is_key = pixels == pixels[0, 0]
    is_key = is_key.all(axis=-1) if pixels.ndim == 3 else is_key
    depth = 16 if "16-bit" in name else 8
    scale = 257 if depth == 16 else 1
    key = np.atleast_1d(pixels[0, 0]).astype(np.uint16) * scale
    rows = (pixels.astype(np.uint16) * scale).astype(">u2" if depth == 16 else "u1")
    white = pixels.copy()
    white[is_key] = 255
    content = png(
        rows, colour=2 if pixels.ndim == 3 else 0, depth=depth, extra=chunk(b"tRNS", key.astype(">u2").tobytes())
    )
    return Variant(kind=kind, suffix="png", content=content, expected=Image.fromarray(white).convert("RGB"))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: npt.NDArray[Any], *, colour: int, depth: int, extra: bytes = b"") -> bytes:
    """A PNG of rows (H, W) or (H, W, 3), whose samples are in big endian already."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, colour, 0, 0, 0))
    data = b"".join(b"\0" + np.ascontiguousarray(row).tobytes() for row in rows)
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def truncated(rng: random.Random, image: Image.Image) -> Variant:
    name = rng.choice(["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
    content = encoded(image, name)
    return Variant(
        kind=f"truncated {name}",
        suffix=name.lower(),
        fate=REFUSE,
        content=content[: int(len(content) * rng.uniform(0.3, 0.8))],
    )


def no_image(rng: random.Random, image: Image.Image) -> Variant:
    del image
    name, content = rng.choice(
        [
            ("empty files", b""),
            ("text for an image", b"Not Found\n"),
            ("text for an image", b"<!doctype html><title>403</title>"),
            ("text for an image", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"),
            ("noise for an image", rng.randbytes(rng.randint(1, 4000))),
            ("zeros for an image", bytes(rng.randint(1, 4000))),
            ("noise for an image", b"\xff\xd8\xff\xe0" + rng.randbytes(200)),
        ]
    )
    return Variant(kind=name, suffix=rng.choice(["jpg", "png", "webp", "gif", "tif"]), content=content, fate=REFUSE)


def huge(rng: random.Random, image: Image.Image) -> Variant:
    """A header that promises billions of pixels."""
    del image
    side = rng.choice([30_000, 60_000])
    name = rng.choice(["png", "bmp", "gif", "jpg"])
    content = {
        "png": b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b""),
        "bmp": b"BM"
        + struct.pack("<IHHI", 200, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
        + bytes(100),
        "gif": b"GIF89a"
        + struct.pack("<HHBBB", side, side, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, side, side, 0)
        + b"\2\2\x4c\1\0;",
        "jpg": b"\xff\xd8\xff\xc0\0\x11\x08"
        + struct.pack(">HH", side, side)
        + b"\3\1\x11\0\2\x11\0\3\x11\0"
        + b"\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0?\0"
        + bytes(100)
        + b"\xff\xd9",
    }[name]
    return Variant(kind="headers of huge images", suffix=name, content=content, fate=REFUSE)


def odd_container(rng: random.Random, image: Image.Image) -> Variant:
    others = {"save_all": True, "append_images": [image.rotate(180)]}
    name, suffix, content = rng.choice(
        [
            ("another format than the suffix says", "jpg", encoded(image, "PNG")),
            ("another format than the suffix says", "png", encoded(image, "JPEG", quality=95)),
            ("another format than the suffix says", "gif", encoded(image, "WEBP", lossless=True)),
            ("bytes after the end", "jpg", encoded(image, "JPEG", quality=95) + b"\r\n" + rng.randbytes(50)),
            ("bytes after the end", "png", encoded(image, "PNG") + rng.randbytes(50)),
            ("broken colour profiles", "jpg", encoded(image, "JPEG", quality=95, icc_profile=rng.randbytes(300))),
            ("broken colour profiles", "png", encoded(image, "PNG", icc_profile=rng.randbytes(300))),
            ("several pictures in a file", "tif", encoded(image, "TIFF", **others)),
            ("several pictures in a file", "webp", encoded(image, "WEBP", lossless=True, **others)),
            ("several pictures in a file", "png", encoded(image, "PNG", **others)),
            ("progressive JPEG", "jpg", encoded(image, "JPEG", quality=95, progressive=True)),
            ("large JPEG", "jpg", encoded(image.resize((900, 700), Image.Resampling.BILINEAR), "JPEG", quality=95)),
            ("formats of old programs", "tga", encoded(image, "TGA")),
            ("formats of old programs", "pcx", encoded(image, "PCX")),
            ("formats of old programs", "ppm", encoded(image, "PPM")),
            ("formats of old programs", "sgi", encoded(image, "SGI")),
        ]
    )
    return Variant(kind=name, suffix=suffix, content=content, expected=image)


VARIANTS: list[Callable[[random.Random, Image.Image], Variant]] = [
    orientation,
    orientation,
    no_orientation,
    orientation_in_tiff,
    mode,
    mode,
    float_or_integer,
    transparency,
    transparency,
    truncated,
    no_image,
    huge,
    odd_container,
]


def check(rng: random.Random, top: Path, *, turn: int, apart: bool) -> list[Outcome]:
    """One picture in five files, each decoded; `apart`: the folder is embedded by the command line too."""
    del turn
    image = picture(rng, rng.randint(70, 110), rng.randint(48, 66))
    folder = top / "pictures"
    folder.mkdir()
    outcomes, files = [], {}
    for number, make in enumerate(rng.sample(VARIANTS, 5)):
        variant = make(rng, image)
        path = folder / f"{number}.{variant.suffix}"
        path.write_bytes(variant.content)
        files[path.name] = outcome_of(variant, path)
        outcomes.append(files[path.name])
    if apart:
        outcomes += embedded(folder, files)
    return outcomes


def outcome_of(variant: Variant, path: Path) -> Outcome:
    """Decodes the file as a path and, where that gives pixels, as an opened PIL image."""
    from edgeembed.device.images import ImageError, load_pixels

    try:
        found = load_pixels(path, SIDE, SIDE)
    except ImageError as error:
        named = path.name in str(error) and "\n" not in str(error)
        fine = named and variant.fate != SAME
        return Outcome(kind=variant.kind, outcome=REFUSED if fine else WRONG, message=f"refused: {error}")
    except Exception as error:
        return Outcome(kind=variant.kind, outcome=WRONG, message=f"{type(error).__name__}: {error}")
    if variant.fate == REFUSE:
        return Outcome(kind=variant.kind, outcome=WRONG, message=f"{path.name} was decoded, expected a refusal")
    fault = difference(found, variant) or difference_as_image(path, variant)
    return Outcome(kind=variant.kind, outcome=WRONG if fault else RIGHT, message=fault)


def difference(found: Pixels, variant: Variant) -> str:
    """Empty where pixels are those expected, resized alike: by cosine after the mean is taken off, and on average."""
    assert variant.expected is not None
    expected = np.asarray(variant.expected.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32)
    vectors = [(pixels.astype(np.float32) - pixels.mean()).ravel() for pixels in (found, expected)]
    norms = [float(np.linalg.norm(vector)) for vector in vectors]
    cosine = float(vectors[0] @ vectors[1]) / max(norms[0] * norms[1], 1e-6)
    mean = float(np.abs(found.astype(np.float32) - expected).mean())
    if cosine >= LEAST_COSINE and mean <= variant.most_difference:
        return ""
    return f"cosine {cosine:.3f} and mean difference {mean:.1f} to the picture"


def difference_as_image(path: Path, variant: Variant) -> str:
    from edgeembed.device.images import squash, to_rgb

    with Image.open(path) as image:
        fault = difference(squash(to_rgb(image), SIDE, SIDE), variant)
    return f"as a PIL image: {fault}" if fault else ""


def embedded(folder: Path, decoded: dict[str, Outcome]) -> list[Outcome]:
    """What `embed FOLDER` embeds and names is what was decoded and refused above."""
    ran = command("embed", folder, "--out", folder.parent / "e.safetensors", "--json", "--threads", "1")
    refused = sorted(name for name, outcome in decoded.items() if outcome.message.startswith("refused"))
    if ran.fault() or ran.code != (2 if len(refused) == len(decoded) else 0):
        return [Outcome(kind="embed FOLDER", outcome=WRONG, message=f"exit code {ran.code}: {ran.error}")]
    faults = [f"{name} was left out silently" for name in refused if not ran.names(name)]
    if ran.code == 0 and (images := json.loads(ran.out)["images"]) != len(decoded) - len(refused):
        faults.append(f"embedded {images} of {len(decoded) - len(refused)}")
    return [Outcome(kind="embed FOLDER", outcome=WRONG if faults else RIGHT, message="; ".join(faults))]
