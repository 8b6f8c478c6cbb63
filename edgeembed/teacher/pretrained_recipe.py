"""Names and settings of a pretrained network that is used as a teacher without training; read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from edgeembed.config import Section
from edgeembed.data.manifest import Manifest
from edgeembed.errors import UserError, unknown_choice
from edgeembed.files import sha256_of
from edgeembed.network.model_names import (
    is_weight_file_name,
    library_of,
    open_clip_model_names,
    require_timm_model,
    require_weights,
)
from edgeembed.run_folder import RunFolder
from edgeembed.training.resume import RunInput, data_input, differences, read_run_recipe

LIBRARIES = ("timm", "open_clip")

NeckDim: TypeAlias = int | Literal["features"]
"""Number of embedding dimensions; "features" keeps every feature of the backbone."""


@dataclass(frozen=True, kw_only=True)
class PretrainedNetwork:
    """A network by its name on the command line: `timm:NAME`, `open_clip:NAME/TAG`, or either with `@FILE`.

    `weights`: as the recipe key `backbone.weights`; the absolute path where it is a file.
    """

    text: str
    library: str
    name: str
    weights: str

    @property
    def folder(self) -> Path:
        """The default run folder of its teacher."""
        tag = [self.weights] if self.library == "open_clip" and not is_weight_file_name(self.weights) else []
        return Path("runs") / "-".join([self.library, self.name, *tag])


def is_pretrained_network(text: str) -> bool:
    """Whether a teacher is given as `timm:...` or `open_clip:...` rather than as a folder."""
    return text.startswith(tuple(f"{library}:" for library in LIBRARIES))


def parse_pretrained_network(text: str) -> PretrainedNetwork:
    """Reads `timm:NAME` or `open_clip:NAME/TAG`, either with `@FILE` or `@none` for other weights.

    Raises UserError, with the nearest known name, for a network or a tag that the library does not have.
    """
    library, _, rest = text.partition(":")
    if library not in LIBRARIES or not rest:
        raise UserError(f"{text!r}: expected a pretrained network, timm:NAME or open_clip:NAME/TAG")
    rest, _, weights = rest.partition("@")
    name, _, tag = rest.partition("/") if library == "open_clip" else (rest, "", "")
    if tag and weights:
        raise UserError(f"{text!r}: names two weights, {tag!r} and {weights!r}: leave one out")
    if library == "open_clip" and name not in open_clip_model_names():
        raise unknown_choice("open_clip model", name, open_clip_model_names())
    if library == "timm":
        require_timm_model("timm model", name, remedy="give the name of a timm model")
        # Both libraries have a few names, such as convnext_base; a name alone means open_clip's model.
        if library_of(name) != "timm":
            raise UserError(f"{text!r}: open_clip has a model {name} too: add timm's tag, as in {name}.TAG")
    weights = weights or tag or "pretrained"
    require_weights(name, weights, library=library, key=f"{text}: weights")
    if is_weight_file_name(weights):
        weights = str(Path(weights).resolve())
    return PretrainedNetwork(text=text, library=library, name=name, weights=weights)


class ImportedBackbone(Section):
    """The network, and its weights as in the recipe of a trained teacher."""

    name: str
    weights: str


class ImportedNeck(Section):
    """The linear projection that is computed from the training images."""

    dim: NeckDim = 64


class ImportedImage(Section):
    """The network's input. None: the size that the network was trained at."""

    size_px: int | None = Field(default=None, ge=16, le=2048)


class ImportRecipe(Section):
    """What the space of an imported teacher depends on, beside the data: config.yaml of its run folder."""

    backbone: ImportedBackbone
    neck: ImportedNeck
    image: ImportedImage


def import_recipe(network: PretrainedNetwork, *, dim: NeckDim, size_px: int | None) -> ImportRecipe:
    """Returns the recipe of an import. Raises UserError for a number of dimensions below 1."""
    if dim != "features" and dim < 1:
        raise UserError(f"--dim {dim}: expected 1 or more dimensions, or features")
    return ImportRecipe(
        backbone=ImportedBackbone(name=network.name, weights=network.weights),
        neck=ImportedNeck(dim=dim),
        image=ImportedImage(size_px=size_px),
    )


def import_inputs(recipe: ImportRecipe, manifest: Manifest) -> Mapping[str, RunInput]:
    """Returns what inputs.json records: the data and, where the weights are a file, that file."""
    inputs = {"data": data_input(manifest)}
    if is_weight_file_name(recipe.backbone.weights):
        inputs["weights"] = RunInput(id=sha256_of(recipe.backbone.weights)[:24], path=recipe.backbone.weights)
    return inputs


def require_same_import(run: RunFolder, recipe: ImportRecipe, manifest: Manifest) -> None:
    """Raises UserError where a finished run was imported from other data or with other settings, or was trained."""
    try:
        # Without a size of its own, the request accepts the run's.
        if recipe.image.size_px is None:
            recipe = recipe.model_copy(update={"image": read_run_recipe(run, ImportRecipe, []).image})
        differing = differences(run, recipe, import_inputs(recipe, manifest))
    except UserError:  # config.yaml is the recipe of a training run
        differing = ["it was trained"]
    if differing:
        raise UserError(
            f"{run.path}: holds another teacher ({'; '.join(differing)}): give that folder as the teacher to use it as "
            "it is, remove it to import the network again, or import it into another folder (`teacher-import --out`)"
        )
