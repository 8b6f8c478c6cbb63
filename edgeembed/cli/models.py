"""Opens the model that `--model` names: a bundle, or a training run, so that a server can index with the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgeembed.arrays import FloatArray, UInt8Array
from edgeembed.device.bundle import read_bundle
from edgeembed.device.embedder import DEFAULT_ARTIFACT, Embedder, PixelModel, bundled_artifacts
from edgeembed.device.embedding_space import long_space_id
from edgeembed.device.embeddings import Embeddings
from edgeembed.device.image_sources import ImageSource
from edgeembed.errors import UserError

if TYPE_CHECKING:
    from edgeembed.network.model import Network


class Model(PixelModel, Protocol):
    """A model that `embed` and `search` can use."""

    name: str
    space_id: str
    precision: str
    runtime: str
    provider: str
    threads: int


def open_model(
    path: Path | None, *, precision: str | None, runtime: str | None, provider: str | None, threads: int | None
) -> Model:
    """Opens a bundle (None: the one of the package), or a run folder, which needs torch and computes in fp32."""
    # A path that is neither goes to Embedder too, whose error says what is expected.
    if path is None or (path / "bundle.json").is_file() or not (path / "model.json").is_file():
        return Embedder(path, precision=precision, runtime=runtime, provider=provider, threads=threads)
    if precision not in (None, "fp32"):
        raise UserError(f"{path}: a run computes in fp32, not in {precision!r}: export it for other precisions")
    if runtime is not None or provider is not None:
        raise UserError(f"{path}: a run computes in torch, on the GPU where there is one: export it for other runtimes")
    return RunModel(path, threads=threads)


def model_of_index(index: Path, stored: Embeddings) -> Path:
    """The model that embedded an index, or else a bundle of the package with the same embedding space.

    Raises UserError that names the model where neither exists.
    """
    if stored.model_path is not None and Path(stored.model_path).exists():
        return Path(stored.model_path)
    same_space = [
        (manifest.name == stored.model, folder.name == DEFAULT_ARTIFACT, folder)
        for folder in bundled_artifacts()
        if long_space_id((manifest := read_bundle(folder)).space_id) == long_space_id(stored.space_id)
    ]
    if same_space:
        # True is above False: the bundle with the name of the model is preferred, then the default one.
        return max(same_space)[-1]
    raise UserError(
        f"index {index} was embedded with {stored.model!r}, in space {stored.space_id}, which no bundle of the package "
        "has: give that model, or a student of the same teacher, with --model"
    )


def describe_model(model: Model) -> str:
    """Name, precision, runtime, threads and space of a model, in one line."""
    threads = f"{model.threads} thread{'' if model.threads == 1 else 's'}"
    return f"{model.name} ({model.precision}, {model.runtime} {model.provider}, {threads}, space {model.space_id})"


class RunModel:
    """A finished run, computed with torch, on the GPU where there is one."""

    precision = "fp32"
    runtime = "torch"

    def __init__(self, folder: Path, *, threads: int | None) -> None:
        import torch

        from edgeembed.network.model_files import load_model
        from edgeembed.training.device import pick_device

        if threads is not None:
            torch.set_num_threads(threads)
        network, origin = load_model(folder)
        self.provider = pick_device("auto")
        self.network: Network = network.to(self.provider)
        self.name, self.space_id = folder.resolve().name, origin.space_id
        self.dim = network.dim
        self.threads = torch.get_num_threads()

    def shape(self, image: ImageSource) -> tuple[int, int]:
        from edgeembed.training.embed import input_shapes

        # The command line passes only paths.
        height, width = input_shapes(self.network, [str(image)], workers=1)[0].tolist()
        return height, width

    def embed_pixels(self, image_NHWC: UInt8Array) -> FloatArray:
        import torch

        with torch.inference_mode():
            image_BCHW = torch.from_numpy(image_NHWC).permute(0, 3, 1, 2).to(self.provider)
            embedding_BD: FloatArray = self.network(image_BCHW).float().cpu().numpy()
        return embedding_BD
