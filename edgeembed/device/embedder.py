"""Images in, embeddings out, on a device: numpy, Pillow and a runtime, no torch."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sized
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeembed.arrays import FloatArray, IntArray, UInt8Array
from edgeembed.device.bundle import choose_file, is_packed, read_bundle, require_shapes, require_unit, verified_file
from edgeembed.device.bundle_schema import PLAN, BundleFile, BundleManifest
from edgeembed.device.image_sources import ImageSource, decode_ahead, images_in
from edgeembed.device.images import ImageError
from edgeembed.device.packing import unpack
from edgeembed.device.plain_progress import ImageCount
from edgeembed.device.runtimes import RUNTIMES, Session, has_int8_dot_product
from edgeembed.device.runtimes.fastest_cache import Pair, open_file_of, recall, verified_pairs
from edgeembed.errors import CheckFailed, UserError

log = logging.getLogger(__name__)


ARTIFACTS = Path(__file__).parents[1] / "artifacts"
DEFAULT_ARTIFACT = "groceries_clothes_mobilenetv4_s"
FORKED_SESSIONS: list[Session] = []
"""Sessions of the process that this one was forked from. They are kept: to end one would wait for its threads."""


class PixelModel(Protocol):
    """What turns (N, height, width, 3) uint8 into (N, dim) unit vectors."""

    dim: int

    def shape(self, image: ImageSource) -> tuple[int, int]:
        """Height and width that an image is resized to; called from several threads."""
        ...

    def embed_pixels(self, image_NHWC: UInt8Array) -> FloatArray: ...


class Embedder:
    """A bundle, opened: `Embedder("bundles/vit_b16").embed(["a.jpg", "b.jpg"])` gives (2, D) float32, unit length.

    It can be pickled, and so be used in a pool of processes: each process opens the bundle again, from the same path,
    with the same file, runtime and number of threads. A process that was forked opens it again too.
    """

    def __init__(
        self,
        bundle: str | Path | None = None,
        *,
        precision: str | None = None,
        runtime: str | None = None,
        provider: str | None = None,
        threads: int | None = None,
    ) -> None:
        """`bundle` is a folder, or one file that `edgeembed artifacts pack` wrote. Without it, the one that comes with
        the package.

        What is given of `precision`, `runtime` and `provider` is used. Where nothing is, the file and runtime that
        `edgeembed doctor` or `bench --remember` measured as the fastest on this machine, of those whose embeddings
        agree here with the fp32 file's; unmeasured, the fp32 file in ONNX Runtime, and in a bundle without one the
        first file that is right for this CPU.

        Raises UserError for what is not a bundle or not offered here, CheckFailed for a file whose checksum is not the
        bundle's and for a provider that leaves the work to another.
        """
        self.bundle = Path(os.path.abspath(default_bundle() if bundle is None else bundle))
        if self.bundle.is_file() and is_packed(self.bundle):
            # Runtimes read a file whole; Windows may not delete one that is still mapped into memory.
            with tempfile.TemporaryDirectory(prefix="edgeembed-", ignore_cleanup_errors=True) as folder:
                unpack(self.bundle, Path(folder) / "bundle")
                self._open(Path(folder) / "bundle", precision, runtime, provider, threads)
        else:
            self._open(self.bundle, precision, runtime, provider, threads)

    def _open(
        self, folder: Path, precision: str | None, runtime: str | None, provider: str | None, threads: int | None
    ) -> None:
        manifest = read_bundle(folder)
        pair, self.session = open_pair(
            folder, manifest, precision=precision, runtime=runtime, provider=provider, threads=threads
        )
        require_shapes(folder / pair.file.path, manifest, self.session.input_shape, self.session.output_shape)
        self.file = self.bundle / pair.file.path
        self.name, self.space_id, self.precision = manifest.name, manifest.space_id, pair.file.precision
        self.dim, self.height, self.width = manifest.embedding.dim, manifest.input.height, manifest.input.width
        self.runtime, self.provider, self.threads = self.session.runtime, self.session.provider, self.session.threads
        self._asked_provider, self._sha256, self._process = provider, pair.file.sha256, os.getpid()

    def _open_after_fork(self) -> None:
        """Opens the session again: its threads stayed in the process that this one was forked from."""
        FORKED_SESSIONS.append(self.session)
        again = open_again(self.bundle, self.precision, self.runtime, self._asked_provider, self.threads, self._sha256)
        self.session, self._process = again.session, os.getpid()

    def __repr__(self) -> str:
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return (
            f"Embedder({self.name!r}: {self.precision}, {self.runtime} {self.provider}, {threads}, "
            f"{self.height} x {self.width} pixels to {self.dim} dimensions, space {self.space_id})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """What opens the same file of the same bundle again; a session itself cannot be pickled."""
        facts = (self.bundle, self.precision, self.runtime, self._asked_provider, self.threads, self._sha256)
        return unpickled, facts

    def shape(self, _image: ImageSource) -> tuple[int, int]:
        """Height and width that an image is resized to: the bundle's for all."""
        return self.height, self.width

    def embed_pixels(self, image_NHWC: UInt8Array) -> FloatArray:
        """RGB pixels (N, height, width, 3), 0..255, to (N, dim) unit vectors."""
        require_pixels(image_NHWC, self.height, self.width)
        if len(image_NHWC) == 0:
            return np.empty((0, self.dim), np.float32)
        if self._process != os.getpid():
            self._open_after_fork()
        embedding_ND = self.session.run(np.ascontiguousarray(image_NHWC))
        if embedding_ND.shape != (len(image_NHWC), self.dim):
            raise CheckFailed(f"{self.file}: gives {embedding_ND.shape}, bundle.json says {self.dim} dimensions")
        if not np.isfinite(embedding_ND).all():
            raise CheckFailed(f"{self.file}: gives NaN or infinity: choose another precision, or export it again")
        require_unit(self.file, embedding_ND)
        return embedding_ND

    def embed(
        self, images: Iterable[ImageSource] | ImageSource, *, batch_size: int = 8, progress: bool = False
    ) -> FloatArray:
        """Images, or a single one, to unit vectors (N, dim), one for each image, in order.

        An image is a path, an encoded file as bytes or as a binary file object, a PIL image, or a uint8 array of any
        size: (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) grey, 0..255. `images` may be any iterable of these, a generator
        too; a batch (N, H, W, 3); or a folder, whose images come sorted by path. docs/preprocessing.md says how each
        becomes the network's input. `progress` draws a line on a terminal while the work takes longer than 2 seconds.

        Raises ImageError for one that cannot be decoded, UserError for what is no image.
        """
        given = images_in(images)
        count = ImageCount(len(given) if isinstance(given, Sized) else None, always=True) if progress else None
        try:
            return embed_images(self, given, batch_size=batch_size, on_skip=refuse, on_progress=count)[0]
        finally:
            if count is not None:
                count.clear()


def open_again(bundle: Path, precision: str, runtime: str, provider: str | None, threads: int, sha256: str) -> Embedder:
    """An embedder as it was in another process. Raises CheckFailed where the bundle holds another file by now."""
    embedder = Embedder(bundle, precision=precision, runtime=runtime, provider=provider, threads=threads)
    if embedder._sha256 != sha256:
        raise CheckFailed(f"{embedder.file}: was replaced since this embedder was opened: open the bundle again")
    return embedder


@functools.lru_cache(maxsize=8)
def unpickled(*facts: Any) -> Embedder:
    """`open_again` once in a process: a pool unpickles an embedder with every task."""
    return open_again(*facts)


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
            log.warning("%s, the fastest here, can no longer be imported: %s", remembered.runtime, error)
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
    images: Iterable[ImageSource],
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
    for position, decoded in enumerate(decode_ahead(images, model.shape)):
        if isinstance(decoded, ImageError):
            on_skip(str(decoded))
        else:
            if batch and (len(batch) == batch_size or batch[0].shape != decoded.shape):
                embeddings.append(model.embed_pixels(np.stack(batch)))
                batch = []
            kept.append(position)
            batch.append(decoded)
        if on_progress is not None:
            on_progress(position + 1)
    if batch:
        embeddings.append(model.embed_pixels(np.stack(batch)))
    return np.concatenate(embeddings), np.array(kept, np.int64)


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
