"""A user's own teacher: embeddings of any model and dimension, with paths, made into a store of targets."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet
import safetensors

from edgeembed.arrays import FloatArray
from edgeembed.data.image_versions import images_id
from edgeembed.data.manifest import Manifest, Rows
from edgeembed.data.path_matching import same_path
from edgeembed.device.embeddings import SCHEMA, Embeddings, read_embeddings, unpack_texts, write_embeddings
from edgeembed.errors import UserError
from edgeembed.files import write_json
from edgeembed.student.targets.store import TargetKey, TargetStore, open_existing
from edgeembed.texts import printable

log = logging.getLogger(__name__)

SOURCE = "source.json"
SAME_COSINE = 0.9999  # of two vectors that only rounding tells apart
FLOATS = ("F16", "BF16", "F32", "F64")  # as safetensors spells them
VECTORS = "vectors.safetensors"  # in the store's folder: the embeddings of every image of the manifest


def import_targets(path: Path, manifest: Manifest, out: Path, *, model: str | None = None) -> dict[str, Any]:
    """Makes a store of a file's embeddings, in a space of their own unless the file names one.

    Raises UserError for a file without usable vectors or paths, and where too few training images are in it.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty: name a new folder with --out")
    embeddings = read_vectors(path, model=model)
    at_N = find(path, embeddings, manifest, np.arange(len(manifest)))
    train = manifest.training_rows()
    at_train = at_N[train]
    if (at_train >= 0).sum() < 2:
        raise UserError(
            f"{path}: has embeddings of {(at_train >= 0).sum()} of {train.size} training images; "
            f"its paths begin with {embeddings.paths[0]}, the manifest's with {manifest.path[train[0]]}"
        )
    key = TargetKey(
        space_id=embeddings.space_id,
        data=manifest.training_fingerprint,
        images=images_id(manifest.files, by="stat"),
        num_images=int(train.size),
        dim=embeddings.embedding_ND.shape[1],
        augmentation={"views": "any"},
    )
    images = np.flatnonzero(at_train >= 0)
    store = TargetStore(out, key)
    store.write(images, 0, embeddings.embedding_ND[at_train[images]])
    store.flush()
    known = np.flatnonzero(at_N >= 0)
    write_embeddings(
        out / VECTORS,
        Embeddings(
            embedding_ND=embeddings.embedding_ND[at_N[known]],
            paths=tuple(manifest.path[row] for row in known),
            space_id=embeddings.space_id,
            model=embeddings.model,
        ),
    )
    source = {"model": embeddings.model, "file": str(path), "manifest": str(manifest.source)}
    write_json(out / SOURCE, source)  # last: its presence says that the import is whole
    return {
        "store": str(out),
        "space_id": key.space_id,
        "dim": key.dim,
        "images": key.num_images,
        "known": int(images.size),
        "others": int(known.size - images.size),
    }


def open_own(folder: Path) -> TargetStore:
    """A store that `import_targets` made."""
    if not (folder / SOURCE).is_file():
        raise UserError(f"{folder}: targets of a teacher run (name the run as --teacher), or an import cut short")
    return open_existing(folder)


def rows_of(path: Path, manifest: Manifest, rows: Rows) -> tuple[FloatArray, Rows]:
    """Embeddings of those rows of a manifest that a file has."""
    embeddings = read_embeddings(path)
    at_N = find(path, embeddings, manifest, rows)
    return embeddings.embedding_ND[at_N[at_N >= 0]], rows[at_N >= 0]


def find(source: Path, embeddings: Embeddings, manifest: Manifest, rows: Rows) -> Rows:
    """Where the embedding of each row's image stands, by its path in the manifest or on disk; -1 where it has none.

    One image may stand in a file more than once, also under several spellings of its path, as long as its vectors are
    equal. Raises UserError where they are not: nothing says which one is right.
    """
    positions_of: defaultdict[str, list[int]] = defaultdict(list)
    for position, name in enumerate(embeddings.paths):
        positions_of[spelled(name)].append(position)

    def positions(*names: str) -> list[int]:
        return sorted(position for name in {*map(spelled, names)} for position in positions_of.get(name, ()))

    at_N = np.full(rows.size, -1, np.int64)
    repeated = 0
    for place, row in enumerate(rows):
        file = manifest.files[row]
        found = positions(manifest.path[row], file) or positions(os.path.realpath(file))
        if found:
            at_N[place] = found[0]
        for other in found[1:]:
            repeated += 1
            cosine = float(embeddings.embedding_ND[found[0]] @ embeddings.embedding_ND[other])
            if cosine < SAME_COSINE:
                names = " and ".join(dict.fromkeys(embeddings.paths[position] for position in (found[0], other)))
                raise UserError(
                    f"{source}: two different embeddings of one image, {names} "
                    f"(rows {found[0]} and {other}, cosine {cosine:.4f}): keep the right one"
                )
    if repeated:
        log.warning("%s: %d embeddings repeat that of the same image: each is taken once", source, repeated)
    return at_N


def spelled(path: str) -> str:
    """A form in which `./a.jpg` and `a.jpg`, and the two Unicode forms of an accent, are equal."""
    return same_path(os.path.normpath(path))


def read_vectors(path: Path, *, model: str | None = None) -> Embeddings:
    """Unit vectors from .parquet (columns path, embedding) or .safetensors (embedding, and paths as we write them).

    Any float type and any length; a file without a space id gets one from its content.
    """
    if path.suffix not in (".parquet", ".safetensors"):
        raise UserError(f"{path}: expected .parquet or .safetensors with paths and embeddings")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    paths, vector_ND, facts = (_parquet if path.suffix == ".parquet" else _safetensors)(path)
    if vector_ND.ndim != 2 or not vector_ND.size or len(vector_ND) != len(paths):
        raise UserError(f"{path}: embedding is {vector_ND.shape} for {len(paths)} paths, expected (N, D)")
    with np.errstate(over="ignore"):  # a length beyond float32 is refused below
        vector_ND = vector_ND.astype(np.float32)
        length_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(length_N1) & (length_N1 > 0)))
    if wrong.size:
        raise UserError(
            f"{path}: {wrong.size} of {len(paths)} embeddings have no length, first that of "
            f"{printable(paths[wrong[0]])} ({length_N1[wrong[0], 0]:.4g}), expected finite numbers that are not all 0: "
            "leave these images out, or compute them again"
        )
    unit_ND: FloatArray = np.ascontiguousarray(vector_ND / length_N1)
    ours = facts.get("schema") == SCHEMA and "space_id" in facts
    digest = hashlib.sha256("\0".join(paths).encode("utf-8", "surrogateescape") + unit_ND.tobytes()).hexdigest()[:16]
    return Embeddings(
        embedding_ND=unit_ND,
        paths=tuple(paths),
        space_id=facts["space_id"] if ours else digest,
        model=model or (facts.get("model") if ours else None) or path.stem,
    )


def _parquet(path: Path) -> tuple[list[str], npt.NDArray[Any], dict[str, str]]:
    try:
        table = pa.parquet.read_table(path)
        numbers = [np.asarray(vector) for vector in table.column("embedding").to_numpy(zero_copy_only=False)]
        paths = [str(name) for name in table.column("path").to_pylist()]
    except (pa.ArrowException, KeyError, OSError) as error:
        raise UserError(f"{path}: not Parquet with columns path and embedding ({error})") from None
    if len({vector.shape for vector in numbers}) != 1:
        raise UserError(f"{path}: column embedding must hold lists of numbers, all of one length")
    if not np.issubdtype(numbers[0].dtype, np.floating):
        raise UserError(f"{path}: column embedding holds {numbers[0].dtype}, expected floating point")
    metadata: dict[bytes, bytes] = table.schema.metadata or {}
    return paths, np.stack(numbers), {key.decode(): value.decode("utf-8", "replace") for key, value in metadata.items()}


def _safetensors(path: Path) -> tuple[list[str], npt.NDArray[Any], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            facts: dict[str, str] = file.metadata() or {}
            kind = str(file.get_slice("embedding").get_dtype())
            if kind not in FLOATS:
                expected = "float16, bfloat16, float32 or float64"
                raise UserError(f"{path}: tensor embedding is {kind}, expected {expected}: convert it")
            blob, offsets = file.get_tensor("paths"), file.get_tensor("path_offsets")
            embedding_ND = file.get_tensor("embedding") if kind != "BF16" else read_bfloat16(path, "embedding")
    except UserError:
        raise
    except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not safetensors with embedding, paths and path_offsets ({error})") from None
    if np.issubdtype(offsets.dtype, np.integer):
        offsets = offsets.astype(np.int64)
    return list(unpack_texts(path, blob, offsets)), embedding_ND, facts


def read_bfloat16(path: Path, name: str) -> FloatArray:
    """A bfloat16 tensor of a sound safetensors file, in float32: numpy has no type for it, but it is the upper half."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    upper = np.fromfile(path, "<u2", count=(end - begin) // 2, offset=8 + size + begin)
    wide: FloatArray = (upper.astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return wide
