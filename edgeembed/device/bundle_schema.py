"""What bundle.json holds: the facts of a bundle and of each of its files."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeembed.intervals import interval_text

SCHEMA = "edgeembed-bundle/2"
SCHEMA_WITHOUT_CHECKSUM = "edgeembed-bundle/1"
MANIFEST = "bundle.json"
CARD = "MODEL_CARD.md"
# Limits on a file that may come from anyone: no value may exhaust memory or fill the screen.
MAX_FILES = 256
ONNX = ".onnx"
PLAN = ".plan"
Text = Annotated[str, Field(min_length=1, max_length=500)]
Cosine = Annotated[float, Field(ge=-1.001, le=1.001)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
CpuRequirement: TypeAlias = Literal["any", "int8 dot products"]


class BundleSection(BaseModel):
    """A group of keys of bundle.json. Unknown keys, which a newer version may have added, are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class EmbeddingSpec(BundleSection):
    dim: int = Field(ge=1, le=65536)
    normalised: bool = True
    # Embeddings have unit length, so that the cosine is the inner product.
    metric: Literal["cosine"] = "cosine"


class InputSpec(BundleSection):
    """The graph's input `image`, uint8, RGB, 0..255; `resize` names how an image is brought to its size."""

    layout: Literal["NHWC"] = "NHWC"
    dtype: Literal["uint8"] = "uint8"
    height: int = Field(ge=1, le=8192)
    width: int = Field(ge=1, le=8192)
    colour: Literal["RGB"] = "RGB"
    resize: Literal["squash-bilinear"] = "squash-bilinear"


class Parity(BundleSection):
    """Agreement of two embeddings of the same images: percentiles of the cosine, and the largest difference.

    `relative_error_p50`: the median over images of (1 - cosine), as a share of the mean of (1 - cosine) between
    different images; None for a single image, and in bundles of earlier versions.
    """

    cosine_p1: Cosine
    cosine_p50: Cosine
    relative_error_p50: float | None = Field(default=None, ge=0)
    max_abs: float = Field(ge=0)
    images: int = Field(default=0, ge=0)


class MapLoss(BundleSection):
    """mAP of the fp32 file minus mAP of another file on the same queries; a value of 0.01 is one point.

    `ci95`: the wider of two paired bootstrap intervals, one over queries and one over classes. `shown`: whether the
    gate's images show that the loss is at most `limit`; None without a limit, and in bundles without this key.
    `queries_needed`: the number of matched queries with which a file without any loss would pass the gate; None where
    the loss is `shown`. `classes_needed`: the number of classes without which no file passes; None where there are as
    many.
    """

    value: float
    ci95: tuple[float, float]
    limit: float | None = None
    shown: bool | None = None
    matched_queries: int | None = Field(default=None, ge=0)
    classes: int | None = Field(default=None, ge=0)
    queries_needed: int | None = Field(default=None, ge=0)
    classes_needed: int | None = Field(default=None, ge=0)

    @property
    def points(self) -> str:
        """The loss with its interval: "0.31 points [0.12, 0.55]"."""
        return f"{100 * self.value:.2f} points {interval_text([100 * end for end in self.ci95], digits=2)}"

    @property
    def difference(self) -> str:
        """ "0.31 points [0.12, 0.55] below fp32's"; for a gain "0.18 points above fp32's (loss [-1.17, 0.74])"."""
        gain = -round(100 * self.value, 2)
        if gain > 0:
            interval = interval_text([100 * end for end in self.ci95], digits=2)
            return f"{gain:.2f} points above fp32's (loss {interval})"
        return f"{self.points} below fp32's"

    def describe(self) -> str:
        return f"mAP is {self.difference}"

    @property
    def not_shown(self) -> str | None:
        """The reason, in one line, where the gate's images do not show that the loss is within its limit; else None."""
        # Bundles of earlier versions lack the keys that the line needs.
        if self.shown is not False or self.limit is None or self.queries_needed is None:
            return None
        if self.classes_needed is not None:
            needed = f"about {self.queries_needed} of at least {self.classes_needed} classes needed"
        elif self.matched_queries is not None and self.matched_queries >= self.queries_needed:
            needed = "enough to pass a file that loses nothing, but this one is too near the limit"
        else:
            needed = f"about {self.queries_needed} needed if it loses nothing"
        counts = f"{self.matched_queries} matched queries of {self.classes} classes"
        return f"not shown: {counts}, {needed}: {self.describe()}, {100 * self.limit:g} allowed"


class RuntimeCheck(BundleSection):
    """Result of the gate for a file in a second runtime, for example an ONNX file in OpenVINO."""

    parity: Parity
    retrieval: dict[str, Any] | None = None
    passed: bool
    """False where the file failed the gate; `retrieval` says whether its loss was shown to be within the limit."""

    @property
    def map_loss(self) -> MapLoss | None:
        return map_loss_in(self.retrieval)


class Quantisation(BundleSection):
    """How an int8 file was quantised, and on which CPUs its embeddings are right.

    x86 CPUs without int8 dot products (VNNI, AMX) add two products of an unsigned and a signed byte in 16 bits, where
    255 * 127 * 2 saturates and 255 * 64 * 2 does not. So 7-bit weights are right on any CPU. A file without this
    section has 8-bit weights.
    """

    calibration: Text | None = None
    reduce_range: bool = False
    """Whether the weights have 7 bits, -64..64."""
    cpus: CpuRequirement
    float_operators: tuple[str, ...] = ()
    """Names of the operators that were left in float32."""

    @model_validator(mode="before")
    @classmethod
    def _add_cpus_to_older_bundles(cls, value: Any) -> Any:
        # The key `cpus` came later; which CPUs are right follows from the number of bits.
        if isinstance(value, dict) and value.get("cpus") is None:
            return {**value, "cpus": "any" if value.get("reduce_range") is True else "int8 dot products"}
        return value


class UntrainedBaseline(BundleSection):
    """Retrieval figures of the same architecture with random weights, to compare the trained network with."""

    fingerprint: Text
    """Fingerprint of the queries and index images; only figures with the same fingerprint can be compared."""
    split: Text
    figures: dict[str, float | None]


class SpreadFacts(BundleSection):
    """How far apart the fp32 embeddings of the gate's images lie, see `spread.Spread`."""

    images: int = Field(ge=0)
    mean_cosine: float
    effective_dim: float = Field(ge=0)


class EvaluationFacts(BundleSection):
    """The queries and index images that the gate scored files on, and the baselines to compare the figures with.

    `not_scored`: the reason where no retrieval could be scored, so that only cosines were checked. `chance`: the
    figures of a random ranking.
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
    untrained: tuple[UntrainedBaseline, ...] = ()
    spread: SpreadFacts | None = None
    collapsed: bool = False

    def untrained_on(self, fingerprint: str) -> dict[str, float | None] | None:
        """The untrained network's figures on the images with that fingerprint; None where they were not measured."""
        return next((one.figures for one in self.untrained if one.fingerprint == fingerprint), None)


class EngineFacts(BundleSection):
    """What a TensorRT engine was built from, and the GPU and TensorRT version that it runs on."""

    tensorrt: Text
    gpu: Text
    compute_capability: Text
    onnx_sha256: Sha256
    """Checksum of the bundle's ONNX file that the engine was built from."""
    max_batch: int = Field(ge=1)
    hardware_compatible: bool = False
    version_compatible: bool = False
    layers: int = Field(default=0, ge=0)
    products: dict[str, int] = Field(default_factory=dict)
    """Number of layers that multiply by weights, by the data type that they compute in (from the engine inspector)."""


class StoredFile(BundleSection):
    """A file of the bundle with its checksum."""

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
    """Why the file failed its gate, where `--accept-worse` wrote it nevertheless."""
    runtimes: dict[str, RuntimeCheck] = Field(default_factory=dict)
    engine: EngineFacts | None = None

    @property
    def map_loss(self) -> MapLoss | None:
        return map_loss_in(self.retrieval)

    @property
    def not_shown(self) -> dict[str, str]:
        """The reason for each runtime in which the loss of mAP was not shown to be within its limit.

        A runtime whose check failed is not among them: there the file is refused.
        """
        # The file's own runtime comes first, then each other one that the gate ran it in.
        checked = {name: check.map_loss for name, check in self.runtimes.items() if check.passed}
        losses = {self.runtime: self.map_loss, **checked}
        # Such a file failed its gate, which is reported instead.
        if self.accepted_worse:
            return {}
        return {name: text for name, loss in losses.items() if loss is not None and (text := loss.not_shown)}

    @property
    def needs_int8_dot_products(self) -> bool:
        """Whether this is an ONNX file that computes wrong embeddings on a CPU without int8 dot products."""
        # int8 engines run on GPUs, which accumulate int8 products exactly.
        if self.precision != "int8" or not self.path.endswith(ONNX):
            return False
        # Files of the first version have 8-bit weights and no section on quantisation.
        return self.quantisation is None or self.quantisation.cpus == "int8 dot products"


class BundleManifest(BundleSection):
    """The whole of bundle.json."""

    # Pydantic models have a method `schema` already.
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
    """The key `map_loss` of a `retrieval` section; None where it is missing or not valid."""
    try:
        return MapLoss.model_validate((retrieval or {})["map_loss"])
    except (KeyError, ValidationError):
        return None
