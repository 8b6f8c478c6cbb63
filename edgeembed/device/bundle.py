"""The bundle: ONNX files, engines and one manifest that says what they are, read and checked without torch."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeembed.agreement import find_defect
from edgeembed.arrays import FloatArray
from edgeembed.device.sealed_json import changed, read_sealed, write_sealed
from edgeembed.errors import CheckFailed, UserError
from edgeembed.files import sha256_of, write_atomically
from edgeembed.intervals import interval_text
from edgeembed.run_folder import what_is

SCHEMA, UNSEALED_SCHEMA = "edgeembed-bundle/2", "edgeembed-bundle/1"
MANIFEST, CARD = "bundle.json", "MODEL_CARD.md"
PACKED_SUFFIX = ".edgeembed.zip"
MAX_FILES = 256
ONNX, PLAN = ".onnx", ".plan"
NO_ENGINE = ": `edgeembed export BUNDLE --tensorrt` builds engines on this GPU"

Text = Annotated[str, Field(min_length=1, max_length=500)]
Cosine = Annotated[float, Field(ge=-1.001, le=1.001)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
CpuRequirement: TypeAlias = Literal["any", "int8 dot products"]


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
    """Agreement with the torch model on real images: cosine percentiles over images, largest element difference.

    `relative_error_p50`: median over images of (1 - cosine) as a share of the mean of (1 - cosine) between different
    images; None where a single image, or an earlier version, has none.
    """

    cosine_p1: Cosine
    cosine_p50: Cosine
    relative_error_p50: float | None = Field(default=None, ge=0)
    max_abs: float = Field(ge=0)
    images: int = Field(default=0, ge=0)


class MapLoss(Part):
    """Difference of the mAP of the fp32 file and that of another file on the same queries; 0.01 is a point.

    `ci95`: the wider of two paired bootstrap intervals, over queries and over classes. `shown`: whether the gate's
    images show that the loss is at most `limit`; None without a limit, and in bundles without this key.
    `queries_needed`: matched queries with which the gate would pass a file that loses nothing; None where `shown`.
    """

    value: float
    ci95: tuple[float, float]
    limit: float | None = None
    shown: bool | None = None
    matched_queries: int | None = Field(default=None, ge=0)
    classes: int | None = Field(default=None, ge=0)
    queries_needed: int | None = Field(default=None, ge=0)

    @property
    def points(self) -> str:
        """With its interval: "0.31 points [0.12, 0.55]"."""
        return f"{100 * self.value:.2f} points {interval_text([100 * end for end in self.ci95], digits=2)}"

    def describe(self) -> str:
        return f"mAP is {self.points} below fp32's"

    @property
    def not_shown(self) -> str | None:
        """One line where the gate's images do not show that the loss is within its limit; None for any other loss."""
        if self.shown is not False or self.limit is None or self.queries_needed is None:
            return None
        if self.matched_queries is not None and self.matched_queries >= self.queries_needed:
            needed = "enough for a file without loss"
        else:
            needed = f"about {self.queries_needed} needed"
        counts = f"{self.matched_queries} matched queries of {self.classes} classes"
        return f"not shown: {counts}, {needed}: {self.describe()}, {100 * self.limit:g} allowed"


class RuntimeCheck(Part):
    """What the gate measured of a file in another runtime than its own."""

    parity: Parity
    retrieval: dict[str, Any] | None = None
    passed: bool
    """False where the gate refuses the file; `retrieval` says whether a loss was shown to be within its limit."""

    @property
    def map_loss(self) -> MapLoss | None:
        return map_loss_in(self.retrieval)


class Quantisation(Part):
    """How an int8 file was made, and for which CPUs it is right.

    x86 CPUs without int8 dot products (VNNI, AMX) add two products of an unsigned and a signed byte in 16 bits, which
    saturate: 255 * 127 * 2 does not fit, 255 * 64 * 2 does. So 7-bit weights are right on any CPU. A file that does not
    say has 8-bit weights.
    """

    calibration: Text | None = None
    reduce_range: bool = False
    """Whether weights have 7 bits, -64..64."""
    cpus: CpuRequirement
    float_operators: tuple[str, ...] = ()
    """Names of the operators that stay in float32."""

    @model_validator(mode="before")
    @classmethod
    def _cpus_of_older_bundles(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("cpus") is None:
            return {**value, "cpus": "any" if value.get("reduce_range") is True else "int8 dot products"}
        return value


class Untrained(Part):
    """The retrieval figures, in its own index, of the network's architecture with random weights."""

    fingerprint: Text
    """Of the queries and index images; figures of others mean nothing beside these."""
    split: Text
    figures: dict[str, float | None]


class SpreadFacts(Part):
    """How far apart the fp32 embeddings of the judged images lie, see `spread.Spread`."""

    images: int = Field(ge=0)
    mean_cosine: float
    effective_dim: float = Field(ge=0)


class EvaluationFacts(Part):
    """What files were scored on, and what their figures are read beside.

    `not_scored` is the reason where nothing could be: files were then judged by cosine alone. `chance`: the figures of
    a random ranking.
    """

    split: Text
    fingerprint: Text
    queries: int = Field(ge=0)
    index: int = Field(ge=0)
    queries_without_match: int = Field(default=0, ge=0)
    labels_of_one_image: int = Field(default=0, ge=0)
    unlabelled: int = Field(default=0, ge=0)
    not_scored: str | None = None
    chance: dict[str, float | None] | None = None
    untrained: tuple[Untrained, ...] = ()
    spread: SpreadFacts | None = None
    collapsed: bool = False

    def untrained_on(self, fingerprint: str) -> dict[str, float | None] | None:
        """The untrained figures on queries and index images of that fingerprint, where they were measured."""
        return next((one.figures for one in self.untrained if one.fingerprint == fingerprint), None)


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
    quantisation: Quantisation | None = None
    accepted_worse: tuple[str, ...] = ()
    """Why its gate refused it, where it was written all the same."""
    runtimes: dict[str, RuntimeCheck] = Field(default_factory=dict)
    engine: EngineFacts | None = None

    @property
    def map_loss(self) -> MapLoss | None:
        return map_loss_in(self.retrieval)

    @property
    def not_shown(self) -> dict[str, str]:
        """For each runtime in which the loss of mAP was not shown to be within its limit: the reason."""
        losses = {self.runtime: self.map_loss, **{name: check.map_loss for name, check in self.runtimes.items()}}
        if self.accepted_worse:
            return {}
        return {name: text for name, loss in losses.items() if loss is not None and (text := loss.not_shown)}

    @property
    def needs_int8_dot_products(self) -> bool:
        """Whether it is an ONNX file that computes wrong embeddings on a CPU without int8 dot products."""
        if self.precision != "int8" or not self.path.endswith(ONNX):
            return False
        return self.quantisation is None or self.quantisation.cpus == "int8 dot products"


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
    evaluation: EvaluationFacts | None = None
    licence: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)


def map_loss_in(retrieval: dict[str, Any] | None) -> MapLoss | None:
    """`map_loss` of a `retrieval` of bundle.json; None where it is missing or not valid."""
    try:
        return MapLoss.model_validate((retrieval or {})["map_loss"])
    except (KeyError, ValidationError):
        return None


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
        raise UserError(f"{folder}: not a bundle ({what_is(folder)}): `edgeembed export` writes one")
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
        raise CheckFailed(f"{path}: gives {output_shape[1]} dimensions, bundle.json says {dim}: export it again")


def require_unit(path: Path, embedding_ND: FloatArray) -> None:
    """Raises CheckFailed for vectors that an inner product cannot compare, which search would rank wrongly."""
    if defect := find_defect(embedding_ND):
        raise CheckFailed(f"{path}: {defect}: export it again")


def fp32_file(manifest: BundleManifest) -> BundleFile | None:
    """The ONNX file that the bundle's other files are compared with."""
    return next((file for file in manifest.files if file.precision == "fp32" and file.path.endswith(ONNX)), None)


def choose_file(
    manifest: BundleManifest,
    precision: str | None,
    *,
    has_int8_dot_product: bool,
    order: Sequence[str] = ("fp32",),
    suffix: str = ONNX,
) -> BundleFile:
    """The ONNX file (or engine) of a precision; by default the first of `order`, else the first in the bundle.

    By default no file is taken that needs int8 dot products where there are none, and none that its gate refused and
    that was written all the same, unless there is no other.

    Raises UserError where the bundle holds no such file, and where none of its files is right for this CPU.
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
    right = {
        name: file for name, file in by_precision.items() if has_int8_dot_product or not file.needs_int8_dot_products
    }
    if not right:
        raise UserError(
            f"bundle {manifest.name!r}: all it holds is int8 with 8-bit weights, which a CPU without int8 dot products "
            "computes wrongly: export the run again, which gives 7-bit weights, or name the precision all the same"
        )
    right = {name: file for name, file in right.items() if not file.accepted_worse} or right
    return next((right[name] for name in order if name in right), next(iter(right.values())))
