"""model.json of a finished run: which network it holds and how that network was trained. Read without torch.

The file is one flat object: a schema, the keys of `NetworkDescription`, then those of `ModelOrigin`. Only keys that
were set are written, because a teacher, a student and an ensemble do not have the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from edgeembed.errors import UserError
from edgeembed.files import read_json, write_json

SCHEMA = "edgeembed-model/1"


def _current_pooling_name(value: Any) -> Any:
    """Earlier versions called the default pooling "own"."""
    return "default" if value == "own" else value


Pooling: TypeAlias = Annotated[Literal["default", "gem"], BeforeValidator(_current_pooling_name)]


class Part(BaseModel):
    """A group of keys of model.json. Keys of other versions are ignored; missing ones have their defaults."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Architecture(Part):
    """One network, or an ensemble of `members`, whose embeddings are scaled by `weights` and concatenated.

    `projected`: the concatenation goes through a linear layer. `blocks`: how many of the first blocks of the backbone
    are kept; None: all of them. `attention_blocks`: how many transformer blocks are added behind them.
    """

    library: str | None = None
    backbone: str
    pooling: Pooling = "default"
    patch_stride: int | None = None
    output_stride: int | None = None
    blocks: int | None = None
    attention_blocks: int | None = None
    dropout: float = 0.0
    batch_norm: bool = False
    weights: tuple[float, ...] = ()
    members: tuple[NetworkDescription, ...] = ()
    projected: bool = False
    params: int | None = None


class InputDescription(Part):
    """What the network reads: RGB images of `height` x `width` pixels; `resize` says how an image becomes that."""

    height: int
    width: int | None = None
    colour: str = "RGB"
    resize: str = "squash-bilinear"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


class EmbeddingDescription(Part):
    """What the network computes. `ordered`: the space is PCA-rotated, so that leading dimensions can be used alone."""

    dim: int
    normalised: bool = True
    metric: str = "cosine"
    ordered: bool = False


class Inference(Part):
    """What an embedding is averaged over: the image and its mirror image, and several input sizes."""

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)


class NetworkDescription(Part):
    """All that is needed to build a network again, without its weights. An ensemble has no `inference` of its own."""

    architecture: Architecture
    input: InputDescription
    embedding: EmbeddingDescription
    inference: Inference | None = None


class TrainingData(Part):
    """The images that a network was trained on."""

    fingerprint: str | None = None
    manifest: str | None = None
    images: int | None = None
    classes: int | None = None
    unreadable: int | None = None


class TeacherOrigin(Part):
    """The teacher of a student. `macs`: multiply-accumulates for one image of the teacher's own input size."""

    path: str | None = None
    backbone: str | None = None
    params: int | None = None
    macs: int | None = None
    data: TrainingData | None = None


class ModelOrigin(Part):
    """How a network was trained, and the embedding space that it maps images to.

    `role`: "teacher" or "student"; None in a JSON file of another program that is called model.json too. `alias`: the
    name of the student on the command line. `members`: run folders of an ensemble and their space ids. `weights`: the
    weights that training started from.
    """

    role: str | None = None
    space_id: str = ""
    alias: str | None = None
    data: TrainingData | None = None
    members: dict[str, str] | None = None
    weights: str | None = None
    precision: str | None = None
    device: str | None = None
    teacher: TeacherOrigin | None = None


PartT = TypeVar("PartT", bound=Part)


def read_origin(path: Path) -> ModelOrigin:
    """Reads the origin from a model.json. Raises UserError for a file that is not JSON, and for a wrong value."""
    return parse(ModelOrigin, read_json(path), path)


def read_model_json(path: Path) -> tuple[NetworkDescription, ModelOrigin]:
    """Reads a whole model.json. Raises UserError that names the key which is missing or wrong."""
    values = read_json(path)
    if values.get("schema") != SCHEMA:
        raise UserError(f"{path}: schema {values.get('schema')!r}, this version reads {SCHEMA!r}")
    origin = parse(ModelOrigin, values, path)
    if not origin.space_id:
        raise wrong_file(path, "space_id: missing")
    return parse(NetworkDescription, values, path), origin


def write_model_json(path: Path, description: NetworkDescription, origin: ModelOrigin) -> None:
    write_json(path, {"schema": SCHEMA, **to_json(description), **to_json(origin)})


def to_json(part: Part, *, exclude: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The keys that were set, as JSON values in the order of their definition. `exclude`: as in pydantic."""
    return part.model_dump(mode="json", exclude_unset=True, exclude=exclude)


def parse(kind: type[PartT], values: Mapping[str, Any], source: Path | str) -> PartT:
    """Reads a group of keys. Raises UserError that names `source`, the first wrong key and what was expected."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        value = "missing" if first["type"] == "missing" else f"{first['input']!r}: {first['msg']}"
        raise wrong_file(source, f"{key}: {value}") from None


def wrong_file(source: Path | str, problem: str) -> UserError:
    return UserError(f"{source}: {problem}: the file was changed or cut off: restore it, or train the run again")
