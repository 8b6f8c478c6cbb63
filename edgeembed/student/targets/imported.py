"""Imports embeddings that any model computed, of any dimension, as a store of targets."""

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
from edgeembed.data.path_matching import path_key
from edgeembed.device.embeddings import SCHEMA, Embeddings, read_embeddings, unpack_texts, write_embeddings
from edgeembed.errors import UserError
from edgeembed.files import write_json
from edgeembed.student.targets.store import TargetKey, TargetStore, open_existing
from edgeembed.texts import printable

log = logging.getLogger(__name__)

SOURCE = "source.json"
MIN_COSINE_OF_COPIES = 0.9999  # of two vectors that differ by rounding alone
FLOAT_DTYPES = ("F16", "BF16", "F32", "F64")  # names in safetensors
VECTORS = "vectors.safetensors"  # in the store's folder: the embeddings of every image of the manifest


def import_targets(path: Path, manifest: Manifest, out: Path, *, model: str | None = None) -> dict[str, Any]:
    """Writes the embeddings of a file into a new store. They have a new space id, unless the file records one.

    Raises UserError for a file without usable vectors or paths, and if it covers fewer than two training images.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty: name a new folder with --out")
    embeddings = read_vectors(path, model=model)
    # Which row of the file belongs to each row of the manifest.
    position_N = match_rows(path, embeddings, manifest, np.arange(len(manifest)))
    train = manifest.training_rows()
    train_position_N = position_N[train]
    images = np.flatnonzero(train_position_N >= 0)
    if images.size < 2:
        raise UserError(
            f"{path}: has embeddings of {images.size} of {train.size} training images; "
            f"its paths begin with {embeddings.paths[0]}, the manifest's with {manifest.path[train[0]]}"
        )
    # The store: one vector for each training image, as view 0, which stands for every view.
    key = TargetKey(
        space_id=embeddings.space_id,
        data=manifest.training_fingerprint,
        # Of all images: vectors of val and test images are kept too.
        images=images_id(manifest.files, by="stat"),
        num_images=int(train.size),
        dim=embeddings.embedding_ND.shape[1],
        augmentation={"views": "any"},
    )
    store = TargetStore(out, key)
    store.write(images, 0, embeddings.embedding_ND[train_position_N[images]])
    store.flush()
    # Vectors of all matched rows, so that a student can be scored beside this teacher.
    matched = np.flatnonzero(position_N >= 0)
    write_embeddings(
        out / VECTORS,
        Embeddings(
            embedding_ND=embeddings.embedding_ND[position_N[matched]],
            paths=tuple(manifest.path[row] for row in matched),
            space_id=embeddings.space_id,
            model=embeddings.model,
        ),
    )
    source = {"model": embeddings.model, "file": str(path), "manifest": str(manifest.source)}
    write_json(out / SOURCE, source)  # last: its presence says that the import is complete
    return {
        "store": str(out),
        "space_id": key.space_id,
        "dim": key.dim,
        "images": key.num_images,
        "known": int(images.size),
        "others": int(matched.size - images.size),
    }


def open_imported_store(folder: Path) -> TargetStore:
    """Opens a store that `import_targets` wrote. Raises UserError for any other."""
    if not (folder / SOURCE).is_file():
        raise UserError(
            f"{folder}: targets of a teacher run (name the run as --teacher), or an import that was not completed"
        )
    return open_existing(folder)


def read_rows(path: Path, manifest: Manifest, rows: Rows) -> tuple[FloatArray, Rows]:
    """Returns the embeddings of some rows of a manifest, (M, D), and the M rows that the file has one for."""
    embeddings = read_embeddings(path)
    position_N = match_rows(path, embeddings, manifest, rows)
    return embeddings.embedding_ND[position_N[position_N >= 0]], rows[position_N >= 0]


def match_rows(source: Path, embeddings: Embeddings, manifest: Manifest, rows: Rows) -> Rows:
    """Returns the position of each row's embedding in a file, -1 for none. Rows match by path, as written or on disk.

    A file may hold an image more than once, also under several spellings of its path, if its vectors are equal. Raises
    UserError if they are not, because nothing says which one is right.
    """
    positions_of: defaultdict[str, list[int]] = defaultdict(list)
    for position, name in enumerate(embeddings.paths):
        positions_of[normalised_path(name)].append(position)

    def positions(*names: str) -> list[int]:
        return sorted(position for name in {*map(normalised_path, names)} for position in positions_of.get(name, ()))

    position_N = np.full(rows.size, -1, np.int64)
    num_repeated = 0
    for number, row in enumerate(rows):
        file = manifest.files[row]
        # realpath looks at the disk: only where the written path is not found.
        found = positions(manifest.path[row], file) or positions(os.path.realpath(file))
        if found:
            position_N[number] = found[0]
        for other in found[1:]:
            num_repeated += 1
            cosine = float(embeddings.embedding_ND[found[0]] @ embeddings.embedding_ND[other])
            if cosine < MIN_COSINE_OF_COPIES:
                names = " and ".join(dict.fromkeys(embeddings.paths[position] for position in (found[0], other)))
                raise UserError(
                    f"{source}: two different embeddings of one image, {names} "
                    f"(rows {found[0]} and {other}, cosine {cosine:.4f}): keep the right one"
                )
    if num_repeated:
        log.warning("%s: %d embeddings repeat that of the same image: each is taken once", source, num_repeated)
    return position_N


def normalised_path(path: str) -> str:
    """Returns the same text for `./a.jpg` and `a.jpg`, and for both Unicode forms of an accented letter."""
    return path_key(os.path.normpath(path))


def read_vectors(path: Path, *, model: str | None = None) -> Embeddings:
    """Reads embeddings and scales them to unit length.

    A .parquet file has the columns `path` and `embedding`, a .safetensors file the tensors that `edgeembed embed`
    writes; any float type and any length will do. Without a recorded space id, the id is a hash of the content.
    """
    if path.suffix not in (".parquet", ".safetensors"):
        raise UserError(f"{path}: expected .parquet or .safetensors with paths and embeddings")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    paths, vector_ND, metadata = (_parquet if path.suffix == ".parquet" else _safetensors)(path)
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
    # Files of other programs may use these keys for something else.
    is_own_format = metadata.get("schema") == SCHEMA and "space_id" in metadata
    # No path contains NUL, so that different lists of paths never give the same bytes.
    digest = hashlib.sha256("\0".join(paths).encode("utf-8", "surrogateescape") + unit_ND.tobytes()).hexdigest()[:16]
    return Embeddings(
        embedding_ND=unit_ND,
        paths=tuple(paths),
        space_id=metadata["space_id"] if is_own_format else digest,
        model=model or (metadata.get("model") if is_own_format else None) or path.stem,
    )


def _parquet(path: Path) -> tuple[list[str], npt.NDArray[Any], dict[str, str]]:
    try:
        table = pa.parquet.read_table(path)
        numbers = [np.asarray(vector) for vector in table.column("embedding").to_numpy(zero_copy_only=False)]
        paths = [str(name) for name in table.column("path").to_pylist()]
    except (pa.ArrowException, KeyError, OSError) as error:
        raise UserError(f"{path}: not Parquet with columns path and embedding ({error})") from None
    # The column is read as one array for each row.
    if len({vector.shape for vector in numbers}) != 1:
        raise UserError(f"{path}: column embedding must hold lists of numbers, all of one length")
    if not np.issubdtype(numbers[0].dtype, np.floating):
        raise UserError(f"{path}: column embedding holds {numbers[0].dtype}, expected floating point")
    metadata: dict[bytes, bytes] = table.schema.metadata or {}
    return paths, np.stack(numbers), {key.decode(): value.decode("utf-8", "replace") for key, value in metadata.items()}


def _safetensors(path: Path) -> tuple[list[str], npt.NDArray[Any], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            # From the header, before the tensor is read: NumPy has no bfloat16.
            dtype = str(file.get_slice("embedding").get_dtype())
            if dtype not in FLOAT_DTYPES:
                expected = "float16, bfloat16, float32 or float64"
                raise UserError(f"{path}: tensor embedding is {dtype}, expected {expected}: convert it")
            blob, offsets = file.get_tensor("paths"), file.get_tensor("path_offsets")
            embedding_ND = file.get_tensor("embedding") if dtype != "BF16" else read_bfloat16(path, "embedding")
    # A UserError is a ValueError, which the next clause would replace.
    except UserError:
        raise
    except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not safetensors with embedding, paths and path_offsets ({error})") from None
    # Other programs may write another integer type than `unpack_texts` takes.
    if np.issubdtype(offsets.dtype, np.integer):
        offsets = offsets.astype(np.int64)
    return list(unpack_texts(path, blob, offsets)), embedding_ND, metadata


def read_bfloat16(path: Path, name: str) -> FloatArray:
    """Reads a bfloat16 tensor as float32. Numpy has no bfloat16, whose bits are the upper half of a float32's."""
    with path.open("rb") as file:
        # Safetensors: 8 bytes of header length, the JSON header, then the data.
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    upper = np.fromfile(path, "<u2", count=(end - begin) // 2, offset=8 + size + begin)
    wide: FloatArray = (upper.astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return wide
