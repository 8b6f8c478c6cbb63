"""Images in, embeddings out, on a device: numpy, Pillow and a runtime, no torch."""

from __future__ import annotations

import functools
import logging
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgeembed.bundle import (
    PLAN,
    BundleFile,
    BundleManifest,
    choose_file,
    read_bundle,
    require_shapes,
    require_unit,
    verified_file,
)
from edgeembed.errors import CheckFailed, UserError
from edgeembed.images import ImageError, UInt8Array, load_pixels, squash, to_rgb
from edgeembed.runtimes import RUNTIMES, Session, available_cores, has_int8_dot_product
from edgeembed.runtimes.fastest import Pair, open_file_of, recall, verified_pairs

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
ImageSource = str | Path | Image.Image

ARTIFACTS = Path(__file__).parent / "artifacts"
DEFAULT_ARTIFACT = "groceries_clothes_mobilenetv4_s"
MAX_DECODERS = 4
DECODED_AHEAD = 16


class PixelModel(Protocol):
    """What turns (N, height, width, 3) uint8 into (N, dim) unit vectors."""

    dim: int

    def shapes(self, images: Sequence[ImageSource]) -> Sequence[tuple[int, int]]:
        """Height and width that each image is resized to."""
        ...

    def embed_pixels(self, image_NHWC: UInt8Array) -> FloatArray: ...


class Embedder:
    """A bundle, opened: `Embedder("bundles/vit_b16").embed(["a.jpg", "b.jpg"])` gives (2, D) float32, unit length."""

    def __init__(
        self,
        bundle: str | Path | None = None,
        *,
        precision: str | None = None,
        runtime: str | None = None,
        provider: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Without a bundle, the one that comes with the package.

        What is given of `precision`, `runtime` and `provider` is used. Where nothing is, the file and runtime that
        `edgeembed doctor` or `bench --remember` measured as the fastest on this machine, of those whose embeddings
        agree here with the fp32 file's; unmeasured, the fp32 file in ONNX Runtime, and in a bundle without one the
        first file that is right for this CPU.

        Raises UserError for what is not a bundle or not offered here, CheckFailed for a file whose checksum is not the
        bundle's and for a provider that leaves the work to another.
        """
        folder = default_bundle() if bundle is None else Path(bundle)
        manifest = read_bundle(folder)
        pair, self.session = open_pair(
            folder, manifest, precision=precision, runtime=runtime, provider=provider, threads=threads
        )
        require_shapes(folder / pair.file.path, manifest, self.session.input_shape, self.session.output_shape)
        self.file = folder / pair.file.path
        self.name, self.space_id, self.precision = manifest.name, manifest.space_id, pair.file.precision
        self.dim, self.height, self.width = manifest.embedding.dim, manifest.input.height, manifest.input.width
        self.runtime, self.provider, self.threads = self.session.runtime, self.session.provider, self.session.threads

    def shapes(self, images: Sequence[ImageSource]) -> Sequence[tuple[int, int]]:
        """Height and width that each image is resized to: the bundle's for all."""
        return [(self.height, self.width)] * len(images)

    def embed_pixels(self, image_NHWC: UInt8Array) -> FloatArray:
        """RGB pixels (N, height, width, 3), 0..255, to (N, dim) unit vectors."""
        require_pixels(image_NHWC, self.height, self.width)
        if len(image_NHWC) == 0:
            return np.empty((0, self.dim), np.float32)
        embedding_ND = self.session.run(np.ascontiguousarray(image_NHWC))
        if embedding_ND.shape != (len(image_NHWC), self.dim):
            raise CheckFailed(f"{self.file}: gives {embedding_ND.shape}, bundle.json says {self.dim} numbers an image")
        if not np.isfinite(embedding_ND).all():
            raise CheckFailed(f"{self.file}: gives NaN or infinity: choose another precision, or export it again")
        require_unit(self.file, embedding_ND)
        return embedding_ND

    def embed(self, images: Sequence[ImageSource] | ImageSource, *, batch_size: int = 8) -> FloatArray:
        """Files or PIL images, or a single one, to (N, dim). Raises ImageError for one that cannot be decoded."""
        listed = [images] if isinstance(images, (str, Path, Image.Image)) else images
        return embed_images(self, listed, batch_size=batch_size, on_skip=refuse)[0]


def bundled_artifacts() -> list[Path]:
    """The bundles that come with the package, by name."""
    return sorted(path.parent for path in ARTIFACTS.glob("*/bundle.json"))


def default_bundle() -> Path:
    folder = ARTIFACTS / DEFAULT_ARTIFACT
    if not (folder / "bundle.json").is_file():
        raise UserError(f"{folder}: the bundled model is missing: name a bundle that `edgeembed export` wrote")
    return folder


def open_pair(
    folder: Path,
    manifest: BundleManifest,
    *,
    precision: str | None,
    runtime: str | None,
    provider: str | None,
    threads: int | None,
) -> tuple[Pair, Session]:
    """The file and runtime asked for, else remembered, else fp32; and its session, checksums being right."""
    by_default = precision is runtime is provider is None
    remembered = recall(folder, manifest, threads=threads) if by_default else None
    if remembered is not None:
        verified_with_weights(folder, manifest, remembered.file)
        try:
            return remembered, open_file_of(folder, remembered, threads=threads)
        except ImportError as error:
            log.warning("%s, the fastest here, cannot be imported any more: %s", remembered.runtime, error)
    pair = choose_pair(manifest, precision, runtime, provider)
    if by_default and remembered is None and len(verified_pairs(manifest)) > 1:
        say_unmeasured(manifest.name, pair.file.path, pair.runtime)
    verified_with_weights(folder, manifest, pair.file)
    return pair, open_file_of(folder, pair, threads=threads, provider=provider)


@functools.cache
def say_unmeasured(name: str, path: str, runtime: str) -> None:
    """Once a process and bundle: that a faster file may be right here."""
    log.info(
        "%s: using %s in %s, as nothing was measured on this machine yet: `edgeembed doctor` measures whether a faster "
        "file is right here",
        name,
        path,
        runtime,
    )


def choose_pair(manifest: BundleManifest, precision: str | None, runtime: str | None, provider: str | None) -> Pair:
    """Without any measurement: what is asked for, else fp32, else the bundle's first file that is right for this CPU.

    A runtime asked for gets a file that was verified in it, where there is one. An int8 file that this CPU computes
    wrongly is used where it is asked for, with a warning.
    """
    if runtime == "tensorrt":  # whose engines are files of their own, compared with fp32 on the GPU that built them
        order = ("int8", "fp32", "fp16")
        engine = choose_file(manifest, precision, has_int8_dot_product=True, order=order, suffix=PLAN)
        return Pair(file=engine, runtime=runtime)
    exact = has_int8_dot_product() or not (provider or "cpu").lower().startswith("cpu")
    verified = tuple(pair.file for pair in verified_pairs(manifest) if pair.runtime == runtime)
    right = tuple(file for file in verified if exact or not file.needs_int8_dot_products)
    if right and precision is None:
        manifest = manifest.model_copy(update={"files": right})
    file = choose_file(manifest, precision, has_int8_dot_product=exact)
    if runtime in RUNTIMES and file not in verified:
        log.warning("%s was not verified in %s: `edgeembed bench` measures what it keeps there", file.path, runtime)
    if file.needs_int8_dot_products and not exact:
        log.warning(
            "%s has 8-bit weights, and this CPU is not known to have int8 dot products: products may saturate, and "
            "embeddings are not those that were verified: use precision fp32, or export the run again, which gives "
            "7-bit weights",
            file.path,
        )
    return Pair(file=file, runtime=runtime or file.runtime)


def verified_with_weights(folder: Path, manifest: BundleManifest, file: BundleFile) -> Path:
    """Where a file lies, after it and the weights kept beside it (`model.fp32.onnx.data`) were found right."""
    for part in manifest.files:
        if part.path.startswith(file.path + "."):
            verified_file(folder, part)
    return verified_file(folder, file)


def embed_images(
    model: PixelModel,
    images: Sequence[ImageSource],
    *,
    batch_size: int = 8,
    on_skip: Callable[[str], None],
    on_progress: Callable[[int], None] | None = None,
) -> tuple[FloatArray, IntArray]:
    """Embeds what can be decoded: (M, dim) and the positions of those M images; a batch runs while others decode.

    `on_skip` gets one line for each image left out, naming it and the reason; `on_progress` the number seen so far.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: expected at least 1")
    embeddings: list[FloatArray] = [np.empty((0, model.dim), np.float32)]
    kept: list[int] = []
    batch: list[UInt8Array] = []
    for position, decoded in enumerate(decode_ahead(images, model.shapes(images))):
        if isinstance(decoded, ImageError):
            on_skip(str(decoded))
        else:
            if batch and batch[0].shape != decoded.shape:
                embeddings.append(model.embed_pixels(np.stack(batch)))
                batch = []
            kept.append(position)
            batch.append(decoded)
        if batch and (len(batch) == batch_size or position == len(images) - 1):
            embeddings.append(model.embed_pixels(np.stack(batch)))
            batch = []
        if on_progress is not None:
            on_progress(position + 1)
    return np.concatenate(embeddings), np.array(kept, np.int64)


def decode_ahead(images: Sequence[ImageSource], shapes: Sequence[tuple[int, int]]) -> Iterator[UInt8Array | ImageError]:
    """(height, width, 3) uint8 of each image, in order, or why there is none; decoded in threads, a few ahead."""
    if len(images) < 2:
        yield from (decode(image, *shape) for image, shape in zip(images, shapes, strict=True))
        return
    from concurrent.futures import Future, ThreadPoolExecutor  # not for one image: the first answer should come fast

    ahead: deque[Future[UInt8Array | ImageError]] = deque()
    # Decoding silences Pillow's warnings by itself, but the filters are the process's: where blocks of several threads
    # overlap, the last to end could leave its own behind. This block, which outlives them all, puts them back.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(MAX_DECODERS, available_cores())) as pool:
        warnings.simplefilter("ignore")
        for image, shape in zip(images, shapes, strict=True):
            ahead.append(pool.submit(decode, image, *shape))
            if len(ahead) > DECODED_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def decode(image: ImageSource, height: int, width: int) -> UInt8Array | ImageError:
    if isinstance(image, Image.Image):
        try:
            return squash(to_rgb(image), height, width)
        except (OSError, SyntaxError, ValueError) as error:  # a file opened lazily, broken further on
            return ImageError(f"{image!r}: cannot be decoded ({error})")
    if not isinstance(image, (str, Path)):
        raise UserError(f"image of type {type(image).__name__}: expected a path or a PIL image; arrays: embed_pixels")
    try:
        return load_pixels(image, height, width)
    except ImageError as error:
        return error


def require_pixels(image_NHWC: UInt8Array, height: int, width: int) -> None:
    """Raises UserError for anything but (N, height, width, 3) uint8."""
    expected = f"expected a uint8 array (N, {height}, {width}, 3)"
    if not isinstance(image_NHWC, np.ndarray):
        raise UserError(f"pixels are of type {type(image_NHWC).__name__}: {expected}")
    if image_NHWC.dtype != np.uint8:
        raise UserError(f"pixels are {image_NHWC.dtype}: {expected}, RGB, 0..255")
    if image_NHWC.ndim != 4 or image_NHWC.shape[1:] != (height, width, 3):
        raise UserError(f"pixels have shape {image_NHWC.shape}: {expected}")


def refuse(message: str) -> None:
    raise ImageError(message)
