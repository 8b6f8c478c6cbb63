"""The pictures that a web page searches: chosen, embedded with the page's own file, made small to look at."""

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
MOST_PICTURES = 200
THUMBNAIL_PX, THUMBNAIL_QUALITY = 160, 75


@dataclass(frozen=True, kw_only=True)
class Picture:
    path: Path
    label: str


def pictures_of_run(run: Path) -> list[Picture]:
    """Those of the data that a run learnt from."""
    data = read_origin(run / "model.json").data
    if data is None or not data.manifest:
        raise UserError(f"{run}: does not say which data it saw: name pictures for the page with --web-index")
    return pictures_of(Path(data.manifest))


def pictures_of(source: Path) -> list[Picture]:
    """Images of a folder, labelled by the folders that they lie in, or of a manifest: at most MOST_PICTURES.

    Of more, some of every label. Raises UserError for what holds none.
    """
    if source.is_dir():
        found = [Picture(path=path, label=label_of(path, source)) for path in find_images(source)]
    elif not source.is_file():
        raise UserError(f"{source}: no such folder or manifest of pictures")
    elif source.suffix.lower() in TABLE_SUFFIXES:
        found = list(of_table(source))
    else:
        tables = ", ".join(TABLE_SUFFIXES)
        raise UserError(f"{source}: expected a folder of pictures, or a manifest or another table ({tables})")
    if not found:
        raise UserError(f"{source}: holds no pictures for the page")
    return spread(found, MOST_PICTURES)


def label_of(path: Path, folder: Path) -> str:
    """The folders between, or the file's own name where there are none."""
    between = path.parent.relative_to(folder).as_posix()
    return printable(path.stem if between == "." else between)


def of_table(source: Path) -> Iterator[Picture]:
    """Of any table with a column `path`; only Parquet needs pyarrow."""
    table = read_table(source, ("path", "label", "split", "role"))
    paths = table.paths()
    empty = (None,) * len(paths)
    labels, splits, roles = (table.columns.get(name, empty) for name in ("label", "split", "role"))
    for row in meant_as_index([role or "" for role in roles], [split or "" for split in splits]):
        path = table.root / paths[row]
        yield Picture(path=path, label=labels[row] or path.stem)


def meant_as_index(roles: Sequence[str], splits: Sequence[str]) -> list[int]:
    """Rows of the index; without any, those of the training split; without any, all."""
    index = [row for row, role in enumerate(roles) if role in ("index", "both")]
    train = [row for row, split in enumerate(splits) if split == "train"]
    return index or train or list(range(len(roles)))


def spread(pictures: Sequence[Picture], most: int) -> list[Picture]:
    """One of each label, then a second of each, and so on; of too many labels, evenly taken ones."""
    by_label: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_label[picture.label].append(picture)
    labels = [by_label[label] for label in sorted(by_label)]
    if len(labels) > most:
        labels = [labels[i * len(labels) // most] for i in range(most)]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*labels))
    return list(itertools.islice((picture for picture in rounds if picture is not None), most))


def write_index(folder: Path, pictures: Sequence[Picture], model: Embedder) -> int:
    """Writes index.json, index.f32 (N, D) and thumbnails/; returns N, without what cannot be decoded.

    index.json names neither paths nor anything that a camera noted: a page is for others to see.
    """
    embedding_ND, kept = embed_images(model, [picture.path for picture in pictures], on_skip=skip)
    if not len(kept):
        raise UserError(f"none of {len(pictures)} pictures for the page can be decoded, first {pictures[0].path}")
    (folder / "thumbnails").mkdir()
    entries = []
    for number, picture in enumerate(pictures[row] for row in kept):
        name = f"thumbnails/{number:03d}.webp"
        make_thumbnail(picture.path).save(folder / name, quality=THUMBNAIL_QUALITY)
        entries.append({"label": picture.label, "thumbnail": name})
    vectors: FloatArray = np.ascontiguousarray(embedding_ND, dtype="<f4")
    (folder / "index.f32").write_bytes(vectors.tobytes())
    index = {"schema": SCHEMA, "space_id": model.space_id, "dim": model.dim, "pictures": entries}
    (folder / "index.json").write_text(json.dumps(index, ensure_ascii=False), encoding="utf-8")
    return len(entries)


def skip(reason: str) -> None:
    log.warning("skipped: %s", reason)


def make_thumbnail(path: Path) -> Image.Image:
    """Pixels alone: what else a file holds (place, camera, profile) stays behind."""
    image = load_rgb(path, at_least_px=THUMBNAIL_PX)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    return Image.fromarray(np.asarray(image))
