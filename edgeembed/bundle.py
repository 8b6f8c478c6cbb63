"""The bundle: ONNX files, engines and one manifest that says what they are, read and checked without torch."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeembed.errors import CheckFailed, UserError
from edgeembed.run import read_json

SCHEMA = "edgeembed-bundle/1"


class Part(BaseModel):
    """A group of bundle.json's keys; keys that a newer version added are kept aside, not refused."""

    model_config = ConfigDict(extra="ignore", frozen=True)


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

    cosine_p1: float
    cosine_p50: float
    max_abs: float
    images: int = 0


class RuntimeCheck(Part):
    """What the gate said of a file in another runtime than its own."""

    parity: Parity
    retrieval: dict[str, Any] | None = None
    passed: bool


class BundleFile(Part):
    path: str
    runtime: str
    precision: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    opset: int | None = None
    parity: Parity | None = None
    retrieval: dict[str, Any] | None = None
    quantisation: dict[str, Any] | None = None
    """Of int8: the calibration, the weights' range, and the operators that stayed in float."""
    accepted_worse: tuple[str, ...] = ()
    """Why its gate refused it, where it was written all the same."""
    runtimes: dict[str, RuntimeCheck] = Field(default_factory=dict)


class BundleManifest(Part):
    """bundle.json."""

    schema_: str = Field(alias="schema")
    name: str
    space_id: str
    embedding: EmbeddingSpec
    input: InputSpec
    files: tuple[BundleFile, ...]
    teacher: dict[str, Any] | None = None
    student: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    licence: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)


def read_bundle(folder: Path) -> BundleManifest:
    """Reads and validates bundle.json. Raises UserError for a folder that holds none, or another schema."""
    path = folder / "bundle.json"
    if not path.is_file():
        raise UserError(f"{folder}: not a bundle (no bundle.json): `edgeembed export` writes one")
    try:
        manifest = BundleManifest.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if manifest.schema_ != SCHEMA:
        raise UserError(f"{path}: schema {manifest.schema_!r}, this version reads {SCHEMA!r}")
    for file in manifest.files:
        parts = PurePosixPath(file.path)
        if parts.is_absolute() or ".." in parts.parts or "\\" in file.path:
            raise UserError(f"{path}: file {file.path!r} lies outside the bundle")
    return manifest


def verified_file(folder: Path, file: BundleFile) -> Path:
    """Where a file of the bundle lies, after its size and checksum were found right. Raises CheckFailed otherwise."""
    path = folder / file.path
    if not path.is_file():
        raise CheckFailed(f"{path}: named in bundle.json but missing: export the bundle again")
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


def choose_file(manifest: BundleManifest, precision: str | None, *, prefer_int8: bool) -> BundleFile:
    """The ONNX file of a precision; by default int8 where this CPU has dot products for it, else fp32.

    A file that its gate refused, and that was written all the same, is taken only by name.
    """
    by_precision = {file.precision: file for file in manifest.files if file.path.endswith(".onnx")}
    if not by_precision:
        raise UserError(f"bundle {manifest.name!r}: holds no ONNX file")
    if precision is not None:
        if precision not in by_precision:
            raise UserError(
                f"bundle {manifest.name!r}: no precision {precision!r}, it holds {', '.join(sorted(by_precision))}"
            )
        return by_precision[precision]
    by_precision = {name: file for name, file in by_precision.items() if not file.accepted_worse} or by_precision
    order = ("int8", "fp32", "fp16") if prefer_int8 else ("fp32", "int8", "fp16")
    return next((by_precision[name] for name in order if name in by_precision), next(iter(by_precision.values())))
