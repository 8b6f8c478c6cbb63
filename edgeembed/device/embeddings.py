"""Embeddings on disk: unit vectors, the image files that they belong to with their labels, and the space id."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from edgeembed.arrays import FloatArray
from edgeembed.device.encodings import ENCODINGS, EncodedVectors, decode
from edgeembed.errors import UserError, unknown_choice
from edgeembed.files import check_output_file, write_atomically
from edgeembed.texts import is_utf8, printable

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = "edgeembed-embeddings/1"
LENGTH_TOLERANCE = 1e-2


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """One unit vector for each image, (N, D), with what is known of the images and of the model.

    `paths` are absolute, or relative to `root` with forward slashes. `labels` is None, or holds one label for each
    path, None for an image without a label. `model` is the model's name, for people to read; `model_path` is where the
    model lay, so that a search on the same machine finds it. `encoding` is how the vectors are stored in a file:
    float32, or quantised by one of `ENCODINGS`.
    """

    embedding_ND: FloatArray
    paths: tuple[str, ...]
    space_id: str
    model: str
    encoding: str = "float32"
    labels: tuple[str | None, ...] | None = None
    root: str | None = None
    model_path: str | None = None

    def files(self, root: str | None = None) -> tuple[str, ...]:
        """The path of each image on this machine; `root` replaces the folder that `paths` are relative to.

        Raises UserError for a `root` where `paths` are absolute.
        """
        if root is not None and self.root is None:
            raise UserError(f"--root {root}: the index holds absolute paths: embed the images with --root FOLDER")
        base = root or self.root
        return self.paths if base is None else tuple(os.path.join(base, path) for path in self.paths)


def relative_paths(files: Sequence[str], root: Path) -> tuple[str, ...]:
    """Paths relative to the folder `root`, with forward slashes. Raises UserError for a file outside of it."""
    base = os.path.abspath(root)
    relative = []
    for file in files:
        try:
            path = os.path.relpath(file, base)
        except ValueError:  # another drive of Windows
            path = os.pardir
        if path.split(os.sep, 1)[0] == os.pardir:
            raise UserError(f"{file}: lies outside of --root {root}: name a folder that holds all images")
        relative.append(path.replace(os.sep, "/"))
    return tuple(relative)


def check_destination(path: Path, encoding: str = "float32") -> None:
    """Raises UserError, before any work is done, for a path or encoding that `write_embeddings` cannot write."""
    if path.suffix not in WRITERS:
        raise unknown_choice("suffix", path.suffix, WRITERS, f"({path})")
    check_output_file(path)
    if encoding not in ("float32", *ENCODINGS):
        raise unknown_choice("encoding", encoding, ("float32", *ENCODINGS))
    if encoding != "float32" and path.suffix != ".safetensors":
        raise UserError(f"{path}: encoding {encoding} is kept in .safetensors only")
    if path.suffix == ".parquet":
        import pyarrow.parquet  # noqa: F401  # fails now where pyarrow is not installed, not after the work


def check_paths(path: Path, names: Sequence[str]) -> None:
    """Raises UserError, before any work is done, for image paths that a file of this suffix cannot store."""
    odd = [name for name in names if not is_utf8(name)] if path.suffix == ".parquet" else []
    if odd:
        raise UserError(
            f"{printable(str(path))}: {len(odd)} paths are not UTF-8, which Parquet cannot hold, first "
            f"{printable(odd[0])}: write .safetensors, or rename the files"
        )


def write_embeddings(path: str | Path, embeddings: Embeddings) -> None:
    """Writes .safetensors, .parquet (needs pyarrow) or .npy (vectors only); the file appears whole or not at all."""
    path = Path(path)
    check_destination(path, embeddings.encoding)
    check_paths(path, embeddings.paths)
    check_embeddings(str(path), embeddings)
    write_atomically(path, WRITERS[path.suffix](embeddings))


def read_embeddings(path: str | Path) -> Embeddings:
    """Reads .safetensors or .parquet. Raises UserError for a file that is damaged or was not written by edgeembed."""
    path = Path(path)
    # A .npy file is refused here, because a search must know which images and which space it searches.
    if path.suffix not in READERS:
        why = " (.npy holds no paths and no space id)" if path.suffix == ".npy" else ""
        raise UserError(f"{path}: expected .safetensors or .parquet{why}: `edgeembed embed` writes them")
    if not path.is_file():
        raise UserError(f"{path}: no such file: `edgeembed embed` writes one")
    embeddings = READERS[path.suffix](path)
    check_embeddings(str(path), embeddings)
    return embeddings


def read_npy(path: Path) -> FloatArray:
    """Reads unit vectors (N, D) from a .npy file. Raises UserError for a damaged file and for other values."""
    if not path.is_file():
        raise UserError(f"{path}: no such file: `edgeembed embed` writes one")
    try:
        embedding_ND = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable .npy file ({error}): embed the images again") from None
    if not isinstance(embedding_ND, np.ndarray):  # np.load opens .npz archives whatever their name is
        raise UserError(f"{path}: is an .npz archive, expected one .npy array: embed the images again")
    check_shape(str(path), embedding_ND)
    check_lengths(str(path), embedding_ND)
    return embedding_ND


def check_embeddings(source: str, embeddings: Embeddings) -> None:
    """Raises UserError unless there is one vector of length 1 for each path, and every path occurs once."""
    check_shape(source, embeddings.embedding_ND)
    if len(embeddings.embedding_ND) != len(embeddings.paths):
        raise UserError(f"{source}: {len(embeddings.embedding_ND)} embeddings for {len(embeddings.paths)} paths")
    if embeddings.labels is not None and len(embeddings.labels) != len(embeddings.paths):
        raise UserError(f"{source}: {len(embeddings.labels)} labels for {len(embeddings.paths)} paths")
    # A path that occurs twice would appear twice among the results of a search.
    first: dict[str, int] = {}
    for at, path in enumerate(embeddings.paths):
        if first.setdefault(path, at) != at:
            raise UserError(
                f"{source}: embeddings {first[path]} and {at} are both of {path!r}: expected one for each path, "
                "remove one of them or embed the images again"
            )
    check_lengths(source, embeddings.embedding_ND, embeddings.paths)


def check_shape(source: str, embedding_ND: FloatArray) -> None:
    """Raises UserError for anything but at least one float32 vector, (N, D)."""
    if embedding_ND.ndim != 2 or embedding_ND.dtype != np.float32 or embedding_ND.size == 0:
        raise UserError(f"{source}: embedding is {embedding_ND.dtype} {embedding_ND.shape}, expected float32 (N, D)")


def check_lengths(source: str, embedding_ND: FloatArray, paths: Sequence[str] | None = None) -> None:
    """Raises UserError for a vector that is not of length 1; `paths` name the images in the message."""
    length_N = np.sqrt(np.einsum("nd,nd->n", embedding_ND, embedding_ND))
    wrong = np.flatnonzero(~(np.abs(length_N - 1.0) <= LENGTH_TOLERANCE))  # so that NaN and infinity are wrong too
    if wrong.size:
        which = f"{wrong[0]}" if paths is None else f"{wrong[0]} ({paths[wrong[0]]})"
        raise UserError(
            f"{source}: embedding {which} has length {length_N[wrong[0]]:.4g}, expected 1: embed the images again"
        )


def _to_safetensors(embeddings: Embeddings) -> bytes:
    if embeddings.encoding == "float32":
        vectors: dict[str, npt.NDArray[Any]] = {"embedding": np.ascontiguousarray(embeddings.embedding_ND)}
    else:
        encoded = ENCODINGS[embeddings.encoding](embeddings.embedding_ND)
        # Codes are computed on writing and decoded on reading: in memory there are only float32 vectors.
        vectors = {"embedding": encoded.code}
        if encoded.rotation_DD is not None:
            vectors["rotation"] = encoded.rotation_DD
    tensors = {**vectors, **_pack_texts("paths", "path_offsets", embeddings.paths)}
    if embeddings.labels is not None:  # an image without a label gets an empty text
        tensors |= _pack_texts("labels", "label_offsets", [label or "" for label in embeddings.labels])
    if embeddings.root is not None:
        # As bytes, because metadata of safetensors is JSON, which cannot hold a path that is not UTF-8.
        tensors["root"] = np.frombuffer(_as_bytes(embeddings.root), np.uint8)
    if embeddings.model_path is not None:
        tensors["model_path"] = np.frombuffer(_as_bytes(embeddings.model_path), np.uint8)
    return safetensors.numpy.save(tensors, metadata=_file_metadata(embeddings))


def _pack_texts(blob: str, bounds: str, texts: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Texts as two tensors: one uint8 blob, and where each text begins in it. File names may be any bytes."""
    encoded = [_as_bytes(text) for text in texts]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(each) for each in encoded], out=offsets[1:])
    # One blob with offsets, as safetensors stores numbers only.
    return {blob: np.array(bytearray(b"".join(encoded)), np.uint8), bounds: offsets}


def _as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _as_text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _from_safetensors(path: Path) -> Embeddings:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            facts: dict[str, str] = file.metadata() or {}
            required = ["embedding", "paths", "path_offsets"]
            # Binary codes were rotated before their signs were taken; decoding needs the rotation.
            if facts.get("encoding") == "binary":
                required.append("rotation")
            present = set(file.keys())
            optional = [name for name in ("labels", "label_offsets", "root", "model_path") if name in present]
            tensors = {name: file.get_tensor(name) for name in (*required, *optional)}
    except (safetensors.SafetensorError, TypeError, ValueError) as error:  # TypeError: a dtype that numpy lacks
        raise UserError(f"{path}: not a readable embeddings file ({error}): embed the images again") from None
    _check_schema(path, facts)
    labels = None
    if {"labels", "label_offsets"} <= tensors.keys():
        labels = tuple(label or None for label in unpack_texts(path, tensors["labels"], tensors["label_offsets"]))
    return Embeddings(
        embedding_ND=_decode_vectors(path, facts.get("encoding", "float32"), tensors),
        paths=unpack_texts(path, tensors["paths"], tensors["path_offsets"]),
        space_id=facts["space_id"],
        model=facts["model"],
        encoding=facts.get("encoding", "float32"),
        labels=labels,
        root=_as_text(tensors["root"].tobytes()) if "root" in tensors else None,
        model_path=_as_text(tensors["model_path"].tobytes()) if "model_path" in tensors else None,
    )


def _decode_vectors(path: Path, encoding: str, tensors: dict[str, npt.NDArray[Any]]) -> FloatArray:
    """The float32 vectors of a file. Raises UserError for an unknown encoding, and for tensors that do not fit it."""
    code = tensors["embedding"]
    if encoding == "float32":
        return code
    rotation_DD = tensors.get("rotation")
    if code.ndim == 2 and encoding == "int8" and code.dtype == np.int8:
        return decode(EncodedVectors(code=code, dim=code.shape[1]))
    if code.ndim == 2 and encoding == "binary" and code.dtype == np.uint8 and rotation_DD is not None:
        dim = len(rotation_DD)
        if rotation_DD.shape == (dim, dim) and rotation_DD.dtype == np.float32 and code.shape[1] == -(-dim // 8):
            return decode(EncodedVectors(code=code, dim=dim, rotation_DD=rotation_DD))
    raise UserError(f"{path}: embedding is {code.dtype} {code.shape} in encoding {encoding!r}: embed the images again")


def unpack_texts(source: Path, blob: npt.NDArray[Any], offsets: npt.NDArray[Any]) -> tuple[str, ...]:
    """The texts in a uint8 blob, by where each begins. Raises UserError where blob and offsets do not fit together."""
    are_valid_types = blob.dtype == np.uint8 and blob.ndim == 1 and offsets.dtype == np.int64 and offsets.ndim == 1
    if (
        not are_valid_types
        or offsets.size == 0
        or offsets[0] != 0
        or offsets[-1] != blob.size
        or (np.diff(offsets) < 0).any()
    ):
        raise UserError(f"{source}: paths and path_offsets do not fit together: embed the images again")
    # Lists and bytes are several times faster to slice in Python than arrays.
    joined, bounds = blob.tobytes(), offsets.tolist()
    return tuple(_as_text(joined[begin:end]) for begin, end in itertools.pairwise(bounds))


def _to_parquet(embeddings: Embeddings) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet

    dim = embeddings.embedding_ND.shape[1]
    values = pa.array(np.ascontiguousarray(embeddings.embedding_ND).reshape(-1))
    columns = {
        "path": pa.array(embeddings.paths, pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(values, dim),
    }
    if embeddings.labels is not None:
        columns["label"] = pa.array(embeddings.labels, pa.string())
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    paths = {"root": embeddings.root, "model_path": embeddings.model_path}
    facts = {**_file_metadata(embeddings), **{key: _as_bytes(path) for key, path in paths.items() if path is not None}}
    pyarrow.parquet.write_table(table.replace_schema_metadata(facts), sink)
    return bytes(sink.getvalue().to_pybytes())


def _from_parquet(path: Path) -> Embeddings:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        table: pa.Table = pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}): embed the images again") from None
    metadata: dict[bytes, bytes] = table.schema.metadata or {}
    facts = {
        key.decode("utf-8", "replace"): value.decode("utf-8", "surrogateescape") for key, value in metadata.items()
    }
    _check_schema(path, facts)
    columns = dict(zip(table.column_names, table.columns, strict=True))
    if any(name not in columns or columns[name].null_count for name in ("path", "embedding")):
        raise UserError(f"{path}: expected columns path and embedding without missing values")
    kind = columns["embedding"].type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32() or not kind.list_size:
        raise UserError(f"{path}: column embedding is {kind}, expected a fixed-size list of float")
    # A file with several row groups has several chunks.
    values = columns["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return Embeddings(
        embedding_ND=values.reshape(-1, kind.list_size),
        paths=tuple(map(str, columns["path"].to_pylist())),
        space_id=facts["space_id"],
        model=facts["model"],
        labels=tuple(columns["label"].cast(pa.string()).to_pylist()) if "label" in columns else None,
        root=facts.get("root"),
        model_path=facts.get("model_path"),
    )


def _to_npy(embeddings: Embeddings) -> bytes:
    sink = io.BytesIO()
    np.save(sink, embeddings.embedding_ND, allow_pickle=False)
    return sink.getvalue()


def _file_metadata(embeddings: Embeddings) -> dict[str, str]:
    # Without the key for float32, such a file is the same as one of earlier versions, byte for byte.
    facts = {"schema": SCHEMA, "space_id": embeddings.space_id, "model": embeddings.model}
    return facts if embeddings.encoding == "float32" else {**facts, "encoding": embeddings.encoding}


def _check_schema(path: Path, facts: dict[str, str]) -> None:
    if facts.get("schema") != SCHEMA or "space_id" not in facts or "model" not in facts:
        raise UserError(
            f"{path}: schema {facts.get('schema')!r}, this version reads {SCHEMA!r}: embed the images again"
        )


WRITERS: dict[str, Callable[[Embeddings], bytes]] = {
    ".safetensors": _to_safetensors,
    ".parquet": _to_parquet,
    ".npy": _to_npy,
}
READERS: dict[str, Callable[[Path], Embeddings]] = {".safetensors": _from_safetensors, ".parquet": _from_parquet}
