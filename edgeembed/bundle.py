"""The bundle: ONNX files, engines and one manifest that says what they are, read and checked without torch."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeembed.errors import CheckFailed, UserError
from edgeembed.run import write_atomically
from edgeembed.seal import changed, read_sealed, write_sealed

SCHEMA, UNSEALED_SCHEMA = "edgeembed-bundle/2", "edgeembed-bundle/1"
MANIFEST, CARD = "bundle.json", "MODEL_CARD.md"
PACKED_SUFFIX = ".edgeembed.zip"
MAX_FILES = 256
LENGTH_TOLERANCE = 1e-3
ONNX, PLAN = ".onnx", ".plan"
NO_ENGINE = ": `edgeembed export BUNDLE --tensorrt` builds engines on this GPU"

Text = Annotated[str, Field(min_length=1, max_length=500)]
Cosine = Annotated[float, Field(ge=-1.001, le=1.001)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Part(BaseModel):
    """A group of bundle.json's keys; keys that a newer version added are kept aside, not refused."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class EmbeddingSpec(Part):
    dim: int = Field(ge=1, le=65536)
    normalised: bool = True
    metric: Literal["cosine"] = "cosine"


class InputSpec(Part):
    """What the graph takes: `image`, uint8, RGB, 0..255; `resize` names how a photograph becomes that."""

    layout: Literal["NHWC"] = "NHWC"
    dtype: Literal["uint8"] = "uint8"
    height: int = Field(ge=1, le=8192)
    width: int = Field(ge=1, le=8192)
    colour: Literal["RGB"] = "RGB"
    resize: Literal["squash-bilinear"] = "squash-bilinear"


class Parity(Part):
    """Agreement with the torch model on real images: cosine percentiles over images, largest element difference."""

    cosine_p1: Cosine
    cosine_p50: Cosine
    max_abs: float = Field(ge=0)
    images: int = Field(default=0, ge=0)


class RuntimeCheck(Part):
    """What the gate said of a file in another runtime than its own."""

    parity: Parity
    retrieval: dict[str, Any] | None = None
    passed: bool


class EngineFacts(Part):
    """What a TensorRT plan was built from and for; it runs nowhere else."""

    tensorrt: Text
    gpu: Text
    compute_capability: Text
    onnx_sha256: Sha256
    """Of the bundle's ONNX file that it was built from."""
    max_batch: int = Field(ge=1)
    hardware_compatible: bool = False
    version_compatible: bool = False
    layers: int = Field(default=0, ge=0)
    products: dict[str, int] = Field(default_factory=dict)
    """Layers that multiply by weights, by the type they compute in, as the engine's inspector says."""


class StoredFile(Part):
    """A file of the bundle, whose bytes the manifest vouches for."""

    path: Text
    sha256: Sha256
    bytes: int = Field(ge=0)


class BundleFile(StoredFile):
    runtime: Text
    precision: Text
    opset: int | None = Field(default=None, ge=1, le=1000)
    parity: Parity | None = None
    retrieval: dict[str, Any] | None = None
    quantisation: dict[str, Any] | None = None
    """Of int8: the calibration, the weights' range, and the operators that stayed in float."""
    accepted_worse: tuple[str, ...] = ()
    """Why its gate refused it, where it was written all the same."""
    runtimes: dict[str, RuntimeCheck] = Field(default_factory=dict)
    engine: EngineFacts | None = None


class BundleManifest(Part):
    """bundle.json."""

    schema_: str = Field(alias="schema")
    name: Text
    space_id: Text
    embedding: EmbeddingSpec
    input: InputSpec
    files: tuple[BundleFile, ...] = Field(min_length=1, max_length=MAX_FILES)
    card: StoredFile | None = None
    teacher: dict[str, Any] | None = None
    student: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    licence: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)


def write_bundle(folder: Path, manifest: BundleManifest, card: str) -> BundleManifest:
    """Writes the model card, then bundle.json, sealed, beside the files that it names. Returns what was written."""
    write_atomically(folder / CARD, card)
    stored = StoredFile(path=CARD, sha256=sha256_of(folder / CARD), bytes=(folder / CARD).stat().st_size)
    sealed = manifest.model_copy(update={"schema_": SCHEMA, "card": stored})
    write_sealed(folder / MANIFEST, sealed.model_dump(by_alias=True, mode="json"))
    return read_bundle(folder)


def read_bundle(folder: Path) -> BundleManifest:
    """Reads and validates bundle.json.

    Raises CheckFailed for one that is not as it was written, UserError for a folder that holds none, another schema,
    or values that no bundle has.
    """
    if folder.is_file():
        packed = f"is a packed bundle: `edgeembed artifacts unpack {folder}` makes it a folder"
        raise UserError(f"{folder}: {packed if is_packed(folder) else 'is a file, expected a bundle folder'}")
    if not os.path.lexists(folder / MANIFEST):
        raise UserError(f"{folder}: not a bundle (no {MANIFEST}): `edgeembed export` writes one")
    path = regular_file(folder, MANIFEST)
    value, sealed = read_sealed(path)
    schema = value.get("schema")
    if schema not in (SCHEMA, UNSEALED_SCHEMA):
        raise UserError(f"{path}: schema {str(schema)[:40]!r}, this version reads {SCHEMA!r} and {UNSEALED_SCHEMA!r}")
    if schema == SCHEMA and not sealed:
        raise changed(path, "it has no seal")
    try:
        manifest = BundleManifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if schema == SCHEMA and manifest.card is None:
        raise UserError(f"{path}: card: missing, {SCHEMA!r} has one")
    require_names(path, [file.path for file in stored_files(manifest)])
    require_sources(path, manifest)
    runnable = [(file.runtime, file.precision) for file in manifest.files if file.path.endswith(".onnx")]
    for runtime, precision in runnable:
        if runnable.count((runtime, precision)) > 1:
            raise UserError(f"{path}: two ONNX files are {precision!r} for {runtime!r}: expected one")
    return manifest


def require_sources(path: Path, manifest: BundleManifest) -> None:
    """Raises CheckFailed for an engine that was built from another ONNX file than the bundle's of its precision."""
    sources = {file.precision: file.sha256 for file in manifest.files if file.path.endswith(".onnx")}
    for file in manifest.files:
        if file.engine is not None and sources.get(file.precision) != file.engine.onnx_sha256:
            raise CheckFailed(
                f"{path}: {file.path} was built from another {file.precision} file than the bundle's: build it again "
                "with `edgeembed export BUNDLE --tensorrt`"
            )


def stored_files(manifest: BundleManifest) -> list[StoredFile]:
    """Every file that the manifest vouches for."""
    return [*manifest.files, *([manifest.card] if manifest.card else [])]


def require_names(path: Path, names: Sequence[str]) -> None:
    """Raises UserError for names that lead out of the bundle, or that some system takes for one and the same."""
    seen = {MANIFEST}
    for name in names:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or ":" in name:
            raise UserError(f"{path}: file {name!r} lies outside the bundle")
        if str(parts) != name or name == "." or not name.isprintable() or len(name.encode()) > 250:
            raise UserError(f"{path}: file {name!r}: not a name that every system can write")
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            raise UserError(f"{path}: file {name!r} is named twice")
        seen.add(key)


def regular_file(folder: Path, name: str) -> Path:
    """Where a file of the bundle lies. Raises CheckFailed where it is missing, a pipe, a device or elsewhere."""
    path = folder / name
    if not os.path.lexists(path):
        raise CheckFailed(f"{path}: named in {MANIFEST} but missing: export or copy the bundle again")
    root, real = os.path.realpath(folder), os.path.realpath(path)
    if os.path.commonpath([root, real]) != root:
        raise CheckFailed(f"{path}: is a link to {real}, outside the bundle: copy the file itself")
    if not path.is_file():
        raise CheckFailed(f"{path}: is not a regular file: export or copy the bundle again")
    return path


def verified_file(folder: Path, file: StoredFile) -> Path:
    """Where a file of the bundle lies, after its size and checksum were found right. Raises CheckFailed otherwise."""
    path = regular_file(folder, file.path)
    if path.stat().st_size != file.bytes:
        raise CheckFailed(f"{path}: has {path.stat().st_size} bytes, bundle.json says {file.bytes}: do not use it")
    actual = sha256_of(path)
    if actual != file.sha256:
        raise CheckFailed(f"{path}: sha256 is {actual[:12]}..., bundle.json says {file.sha256[:12]}...: do not use it")
    return path


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def is_packed(path: Path) -> bool:
    """Whether a file is one that `edgeembed artifacts pack` may have written."""
    with path.open("rb") as file:
        return path.name.endswith(PACKED_SUFFIX) or file.read(4) == b"PK\x03\x04"


def require_shapes(
    path: Path,
    manifest: BundleManifest,
    input_shape: Sequence[int | None],
    output_shape: Sequence[int | None],
) -> None:
    """Raises CheckFailed for a graph that takes or gives other sizes than bundle.json says, before it is fed any.

    `input_shape` is (N, H, W, 3), `output_shape` (N, D), as the graph declares them; a D that is left free is told by
    the first run.
    """
    height, width, dim = manifest.input.height, manifest.input.width, manifest.embedding.dim
    if tuple(input_shape[1:3]) != (height, width):
        found = f"{input_shape[1]} x {input_shape[2]}"
        raise CheckFailed(f"{path}: takes images of {found}, bundle.json says {height} x {width}: export it again")
    if isinstance(output_shape[1], int) and output_shape[1] != dim:
        raise CheckFailed(f"{path}: gives {output_shape[1]} numbers an image, bundle.json says {dim}: export it again")


def require_unit(path: Path, embedding_ND: npt.NDArray[np.float32]) -> None:
    """Raises CheckFailed for vectors that an inner product cannot compare, which search would rank wrongly."""
    length_N = np.sqrt(np.einsum("nd,nd->n", embedding_ND, embedding_ND))
    wrong_W = length_N[~(np.abs(length_N - 1) < LENGTH_TOLERANCE)]  # NaN is wrong too
    if len(wrong_W):
        raise CheckFailed(f"{path}: gives vectors of length {wrong_W[0]:.4f}, expected 1: export it again")


def choose_file(
    manifest: BundleManifest, precision: str | None, *, prefer_int8: bool, suffix: str = ONNX
) -> BundleFile:
    """The ONNX file (or engine) of a precision; by default int8 where that is preferred, else fp32.

    A file that its gate refused, and that was written all the same, is taken only by name.
    """
    by_precision = {file.precision: file for file in manifest.files if file.path.endswith(suffix)}
    if not by_precision:
        raise UserError(f"bundle {manifest.name!r}: holds no {suffix} file{NO_ENGINE if suffix == PLAN else ''}")
    if precision is not None:
        if precision not in by_precision:
            raise UserError(
                f"bundle {manifest.name!r}: no precision {precision!r}, it holds {', '.join(sorted(by_precision))}"
            )
        return by_precision[precision]
    by_precision = {name: file for name, file in by_precision.items() if not file.accepted_worse} or by_precision
    order = ("int8", "fp32", "fp16") if prefer_int8 else ("fp32", "int8", "fp16")
    return next((by_precision[name] for name in order if name in by_precision), next(iter(by_precision.values())))
