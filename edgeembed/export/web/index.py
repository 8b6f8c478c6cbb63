"""Builds the index of a web page: chooses pictures, embeds them with the page's model file, makes thumbnails."""

from __future__ import annotations

import itertools
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgeembed.arrays import FloatArray
from edgeembed.data.tables import TABLE_SUFFIXES, read_table
from edgeembed.device.embedder import Embedder, embed_images
from edgeembed.device.image_files import find_images
from edgeembed.device.images import load_rgb
from edgeembed.errors import UserError
from edgeembed.model_json import read_origin
from edgeembed.texts import printable

log = logging.getLogger(__name__)

SCHEMA = "edgeembed-web-index/1"
MAX_PICTURES = 200
THUMBNAIL_PX, THUMBNAIL_QUALITY = 160, 75


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that visitors may find, and the label that the page shows with it."""

    path: Path
    label: str


def find_pictures_of_run(run: Path) -> list[Picture]:
    """Returns pictures of the data that a run was trained on."""
    data = read_origin(run / "model.json").data
    if data is None or not data.manifest:
        raise UserError(f"{run}: does not record its data: name pictures for the page with --web-index")
    return find_pictures(Path(data.manifest))


def find_pictures(source: Path) -> list[Picture]:
    """Returns at most MAX_PICTURES pictures of a folder, labelled by their subfolders, or of a manifest.

    Where there are more, it takes some of every label. Raises UserError for a source without pictures.
    """
    if source.is_dir():
        found = [Picture(path=path, label=label_of(path, source)) for path in find_images(source)]
    elif not source.is_file():
        raise UserError(f"{source}: no such folder or manifest of pictures")
    elif source.suffix.lower() in TABLE_SUFFIXES:
        found = list(table_pictures(source))
    else:
        tables = ", ".join(TABLE_SUFFIXES)
        raise UserError(f"{source}: expected a folder of pictures, or a manifest or another table ({tables})")
    if not found:
        raise UserError(f"{source}: holds no pictures for the page")
    return pick_of_each_label(found, MAX_PICTURES)


def label_of(path: Path, folder: Path) -> str:
    """Returns the folders between `folder` and the picture, or the name of the file where there are none."""
    between = path.parent.relative_to(folder).as_posix()
    return printable(path.stem if between == "." else between)


def table_pictures(source: Path) -> Iterator[Picture]:
    """Yields the index pictures of a table with a column `path`; only Parquet needs pyarrow."""
    table = read_table(source, ("path", "label", "split", "role"))
    paths = table.paths()
    empty = (None,) * len(paths)
    labels, splits, roles = (table.columns.get(name, empty) for name in ("label", "split", "role"))
    for row in index_rows([role or "" for role in roles], [split or "" for split in splits]):
        path = table.root / paths[row]
        yield Picture(path=path, label=labels[row] or path.stem)


def index_rows(roles: Sequence[str], splits: Sequence[str]) -> list[int]:
    """Returns the rows with an index role; without any, the training rows; without any, all rows."""
    index = [row for row, role in enumerate(roles) if role in ("index", "both")]
    train = [row for row, split in enumerate(splits) if split == "train"]
    return index or train or list(range(len(roles)))


def pick_of_each_label(pictures: Sequence[Picture], max_pictures: int) -> list[Picture]:
    """Takes one picture of each label, then a second of each, and so on; labels are thinned evenly where too many."""
    by_label: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_label[picture.label].append(picture)
    labels = [by_label[label] for label in sorted(by_label)]
    if len(labels) > max_pictures:
        # Evenly over the sorted labels, not the first of the alphabet.
        labels = [labels[i * len(labels) // max_pictures] for i in range(max_pictures)]
    # zip_longest gives one of each label a round; short labels are padded with None.
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*labels))
    return list(itertools.islice((picture for picture in rounds if picture is not None), max_pictures))


def write_index(folder: Path, pictures: Sequence[Picture], model: Embedder) -> int:
    """Writes index.json, index.f32 (N, D) and thumbnails/; returns N, the pictures that could be decoded.

    index.json holds no paths and no camera metadata, because others see the page.
    """
    embedding_ND, kept = embed_images(model, [picture.path for picture in pictures], on_skip=log_skipped)
    if not len(kept):
        raise UserError(f"none of {len(pictures)} pictures for the page can be decoded, first {pictures[0].path}")
    (folder / "thumbnails").mkdir()
    entries = []
    for number, picture in enumerate(pictures[row] for row in kept):
        name = f"thumbnails/{number:03d}.webp"
        make_thumbnail(picture.path).save(folder / name, quality=THUMBNAIL_QUALITY)
        entries.append({"label": picture.label, "thumbnail": name})
    # Little-endian float32, row by row, as the browser's Float32Array reads it.
    vectors: FloatArray = np.ascontiguousarray(embedding_ND, dtype="<f4")
    (folder / "index.f32").write_bytes(vectors.tobytes())
    index = {"schema": SCHEMA, "space_id": model.space_id, "dim": model.dim, "pictures": entries}
    (folder / "index.json").write_text(json.dumps(index, ensure_ascii=False), encoding="utf-8")
    return len(entries)


def log_skipped(reason: str) -> None:
    log.warning("skipped: %s", reason)


def make_thumbnail(path: Path) -> Image.Image:
    """Returns a small copy with pixels only, without the file's metadata (place, camera, colour profile)."""
    image = load_rgb(path, at_least_px=THUMBNAIL_PX)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    # A new image: `save` would write the metadata that `image` still holds.
    return Image.fromarray(np.asarray(image))
