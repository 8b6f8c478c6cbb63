"""Writes the manifests of general.sh: all kinds of images, some kinds left out, and the kinds to test on.

Why: a model for everybody's images has to be measured on kinds of images that its training has not seen.
Usage: python benchmarks/general_data.py GROCERY.parquet CLOTHING_FOLDER RENDERED.parquet OTHER_RENDERED.parquet \
    IMAGES_FOLDER OUT
RENDERED and OTHER_RENDERED are two renderings of `edgeembed data synth` with different seeds, so that they share no
object. IMAGES_FOLDER is the output of general_images.py: each of its images for training is a class of its own, in
every manifest for training. OUT/all.csv is for training; of the clothes, the photographs of a fifth of the senders are
held out, so that nobody's are on both sides. OUT/without_clothes.csv and OUT/without_groceries.csv leave out the kinds
in `WITHOUT`: every kind is missing from one of them. OUT/kinds.csv has held-out images of every kind, for
unseen_kinds.py.
"""

from __future__ import annotations

import argparse
import csv
import zlib
from pathlib import Path
from typing import NamedTuple

from edgeembed.data.manifest import read_manifest

WITHOUT = {
    "without_clothes": {"clothes", "rendered apparel", "rendered toys"},
    "without_groceries": {"groceries", "rendered artwork", "rendered landmarks", "rendered packaged_goods"},
}


class Row(NamedTuple):
    path: str
    label: str
    domain: str
    split: str
    role: str


def groceries(manifest_path: Path) -> list[Row]:
    manifest = read_manifest(manifest_path)
    return [
        Row(manifest.files[row], f"groceries/{manifest.label[row]}", "groceries", manifest.split[row], role or "")
        for row, role in enumerate(manifest.role)
    ]


def clothes(folder: Path) -> list[Row]:
    """Senders decide the split: a fifth of them is in test, a twentieth in val."""
    rows = []
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            draw = zlib.crc32(line["sender_id"].encode()) % 20
            split, role = ("test", "query") if draw < 4 else ("val", "") if draw == 4 else ("train", "index")
            rows.append(Row(str((folder / line["path"]).resolve()), f"clothes/{line['label']}", "clothes", split, role))
    return rows


def rendered(manifest_path: Path, split: str) -> list[Row]:
    manifest = read_manifest(manifest_path)
    return [
        Row(manifest.files[row], f"rendered/{manifest.label[row]}", f"rendered {manifest.domain[row]}", split, "")
        for row in range(len(manifest))
    ]


def unlike(folder: Path) -> list[Row]:
    return [
        Row(str(path.resolve()), f"other/{path.stem}", "other", "train", "") for path in sorted(folder.glob("*.jpg"))
    ]


def crops(folder: Path) -> list[Row]:
    return [
        Row(str(path.resolve()), f"crops/{path.parent.name}", "crops of photographs", "test", "")
        for path in sorted(folder.rglob("*.jpg"))
    ]


def write(rows: list[Row], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(rows)
    print(f"{path}: {len(rows)} images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("grocery", "clothing", "rendered", "other_rendered", "images", "out"):
        parser.add_argument(name, type=Path)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    rows = [*groceries(asked.grocery), *clothes(asked.clothing), *rendered(asked.rendered, "train")]
    rows += unlike(asked.images / "unlike")
    write(rows, asked.out / "all.csv")
    for name, left_out in WITHOUT.items():
        write([row for row in rows if row.domain not in left_out and row.split != "test"], asked.out / f"{name}.csv")
    tested = [row._replace(role="") for row in rows if row.split == "test"]
    tested += crops(asked.images / "crops")
    write([*tested, *rendered(asked.other_rendered, "test")], asked.out / "kinds.csv")


if __name__ == "__main__":
    main()
