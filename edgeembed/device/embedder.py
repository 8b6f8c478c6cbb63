"""Computes embeddings of images with a bundle: needs numpy, Pillow and a runtime, not torch."""

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
from edgeembed.device.bundle import check_shapes, check_unit_length, choose_file, is_packed, read_bundle, verified_file
from edgeembed.device.bundle_schema import PLAN, BundleFile, BundleManifest
from edgeembed.device.image_sources import ImageSource, as_images, decode_ahead
from edgeembed.device.images import ImageError
from edgeembed.device.packing import unpack
from edgeembed.device.plain_progress import ImageProgress
from edgeembed.device.runtimes import RUNTIMES, Session, has_int8_dot_product
from edgeembed.device.runtimes.fastest_cache import (
    RunnableFile,
    load_fastest,
    open_runnable_file,
    verified_runnable_files,
)
from edgeembed.errors import CheckFailed, UserError

log = logging.getLogger(__name__)


ARTIFACTS = Path(__file__).parents[1] / "artifacts"
DEFAULT_ARTIFACT = "groceries_clothes_lite0"
PARENT_SESSIONS: list[Session] = []
"""Sessions that this process got from the one it was forked from. They are kept, because deleting one would wait for
its threads, which a forked process does not have."""


class PixelModel(Protocol):
    """Computes unit vectors (N, dim) from pixels (N, height, width, 3), uint8: a bundle, or a run in torch."""

    dim: int

    def shape(self, image: ImageSource) -> tuple[int, int]:
        """The height and width that an image is resized to; called from several threads."""
        ...

    def embed_pixels(self, image_NHWC: UInt8Array) -> FloatArray: ...


class Embedder:
    """An open bundle: `Embedder("bundles/vit_b16").embed(["a.jpg", "b.jpg"])` returns unit vectors (2, D), float32.

    It can be pickled, and so be used in a pool of processes: each process opens the bundle again, from the same path,
    with the same file, runtime and number of threads. So does a process that was forked.
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
        """Opens a bundle: a folder, one file that `edgeembed artifacts pack` wrote, or the name of a bundled model.

        By default it opens `DEFAULT_ARTIFACT`; `edgeembed artifacts` lists all bundled models.

        Of `precision`, `runtime` and `provider`, those that are given decide. Where none is given, the embedder uses
        the file and runtime that `edgeembed doctor` or `bench --remember` measured as the fastest on this machine,
        among those whose embeddings agree here with the fp32 file's. Where nothing was measured it uses the fp32 file
        in ONNX Runtime, or, in a bundle without one, the first file that is right for this CPU.

        Raises UserError where `bundle` is not a bundle, or where a precision, runtime or provider is not available;
        CheckFailed for a wrong checksum, and for a provider that leaves all of the work to another one.
        """
        # Absolute, because a process that opens the bundle again may have another current folder.
        self.bundle = Path(os.path.abspath(default_bundle() if bundle is None else bundle_folder(bundle)))
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
        runnable, self.session = choose_and_open(
            folder, manifest, precision=precision, runtime=runtime, provider=provider, threads=threads
        )
        # Before the first image: a wrong size would otherwise fail deep inside the runtime.
        check_shapes(folder / runnable.file.path, manifest, self.session.input_shape, self.session.output_shape)
        self.file = self.bundle / runnable.file.path
        self.name, self.space_id, self.precision = manifest.name, manifest.space_id, runnable.file.precision
        self.dim, self.height, self.width = manifest.embedding.dim, manifest.input.height, manifest.input.width
        self.runtime, self.provider, self.threads = self.session.runtime, self.session.provider, self.session.threads
        self._given_provider, self._sha256, self._process = provider, runnable.file.sha256, os.getpid()

    def _open_after_fork(self) -> None:
        """Opens the session again: a forked process does not have the session's threads."""
        PARENT_SESSIONS.append(self.session)
        reopened = reopen(self.bundle, self.precision, self.runtime, self._given_provider, self.threads, self._sha256)
        self.session, self._process = reopened.session, os.getpid()

    def __repr__(self) -> str:
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return (
            f"Embedder({self.name!r}: {self.precision}, {self.runtime} {self.provider}, {threads}, "
            f"{self.height} x {self.width} pixels to {self.dim} dimensions, space {self.space_id})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the arguments that open the same file again, because a session cannot be pickled."""
        return reopen_once, (
            self.bundle,
            self.precision,
            self.runtime,
            self._given_provider,
            self.threads,
            self._sha256,
        )

    def shape(self, _image: ImageSource) -> tuple[int, int]:
        """The height and width that an image is resized to: those of the bundle for every image."""
        return self.height, self.width

    def embed_pixels(self, image_NHWC: UInt8Array) -> FloatArray:
        """Unit vectors (N, dim) of RGB pixels (N, height, width, 3), uint8, 0..255."""
        check_pixels(image_NHWC, self.height, self.width)
        if len(image_NHWC) == 0:
            return np.empty((0, self.dim), np.float32)
        # The process was forked since the session was opened, for example by a data loader.
        if self._process != os.getpid():
            self._open_after_fork()
        # Every output is checked, as it costs little beside the network and wrong vectors would go unnoticed.
        embedding_ND = self.session.run(np.ascontiguousarray(image_NHWC))
        if embedding_ND.shape != (len(image_NHWC), self.dim):
            raise CheckFailed(f"{self.file}: gives {embedding_ND.shape}, bundle.json says {self.dim} dimensions")
        if not np.isfinite(embedding_ND).all():
            raise CheckFailed(f"{self.file}: gives NaN or infinity: choose another precision, or export it again")
        check_unit_length(self.file, embedding_ND)
        return embedding_ND

    def embed(
        self, images: Iterable[ImageSource] | ImageSource, *, batch_size: int = 8, progress: bool = False
    ) -> FloatArray:
        """Unit vectors (N, dim) of N images, in their order, or (1, dim) of a single one.

        An image is a path, an encoded file as bytes or as a binary file object, a PIL image, or a uint8 array of any
        size: (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) grey, 0..255. `images` may be any iterable of these, for
        example a generator; a batch (N, H, W, 3); or a folder, whose images are taken in the order of their paths.
        docs/preprocessing.md describes how each becomes the network's input. `progress` draws a line on a terminal if
        the work takes longer than 2 seconds.

        Raises ImageError for an image that cannot be decoded, UserError for an object of another type.
        """
        sources = as_images(images)
        progress_line = (
            ImageProgress(len(sources) if isinstance(sources, Sized) else None, always=True) if progress else None
        )
        try:
            return embed_images(
                self, sources, batch_size=batch_size, on_skip=raise_image_error, on_progress=progress_line
            )[0]
        finally:
            if progress_line is not None:
                progress_line.clear()


def reopen(bundle: Path, precision: str, runtime: str, provider: str | None, threads: int, sha256: str) -> Embedder:
    """Opens an embedder as it was in another process. Raises CheckFailed where its file has been replaced since."""
    embedder = Embedder(bundle, precision=precision, runtime=runtime, provider=provider, threads=threads)
    if embedder._sha256 != sha256:
        raise CheckFailed(f"{embedder.file}: was replaced since this embedder was opened: open the bundle again")
    return embedder


@functools.lru_cache(maxsize=8)
def reopen_once(*arguments: Any) -> Embedder:
    """Calls `reopen`, once in a process for the same arguments: a pool unpickles an embedder with every task."""
    return reopen(*arguments)


def bundled_artifacts() -> list[Path]:
    """Folders of the bundles that come with the package, sorted by name."""
    return sorted(path.parent for path in ARTIFACTS.glob("*/bundle.json"))


def default_bundle() -> Path:
    """Folder of the bundle that is used where none is named. Raises UserError where the package lacks it."""
    folder = ARTIFACTS / DEFAULT_ARTIFACT
    if not (folder / "bundle.json").is_file():
        raise UserError(f"{folder}: the bundled model is missing: name a bundle that `edgeembed export` wrote")
    return folder


def bundle_folder(bundle: str | Path) -> Path:
    """Folder of a bundle: a path, or the name of a bundle that comes with the package.

    A path that does not exist is returned unchanged, and reading it is the error that names it.
    """
    path = Path(bundle)
    bundled = ARTIFACTS / path.name
    is_name = len(path.parts) == 1 and not os.path.lexists(path)
    return bundled if is_name and (bundled / "bundle.json").is_file() else path


def choose_and_open(
    folder: Path,
    manifest: BundleManifest,
    *,
    precision: str | None,
    runtime: str | None,
    provider: str | None,
    threads: int | None,
) -> tuple[RunnableFile, Session]:
    """Chooses a file and runtime as `Embedder` describes, verifies the file's checksums and opens a session."""
    nothing_given = precision is runtime is provider is None
    fastest = load_fastest(folder, manifest, threads=threads) if nothing_given else None
    # The checksum is verified before the runtime parses the file: it may come from anyone.
    if fastest is not None:
        verified_with_weights(folder, manifest, fastest.file)
        try:
            return fastest, open_runnable_file(folder, fastest, threads=threads)
        except ImportError as error:
            log.warning("%s, the fastest here, can no longer be imported: %s", fastest.runtime, error)
    runnable = choose_runnable_file(manifest, precision, runtime, provider)
    if nothing_given and fastest is None and len(verified_runnable_files(manifest)) > 1:
        log_not_measured(manifest.name, runnable.file.path, runnable.runtime)
    verified_with_weights(folder, manifest, runnable.file)
    return runnable, open_runnable_file(folder, runnable, threads=threads, provider=provider)


@functools.cache
def log_not_measured(name: str, path: str, runtime: str) -> None:
    """Tells, once in a process for each bundle, that another file may be faster here."""
    log.info(
        "%s: using %s in %s, as nothing was measured on this machine yet: `edgeembed doctor` measures whether a faster "
        "file is right here",
        name,
        path,
        runtime,
    )


def choose_runnable_file(
    manifest: BundleManifest, precision: str | None, runtime: str | None, provider: str | None
) -> RunnableFile:
    """The file and runtime to use without any measurement: those given, else fp32, else the first right for this CPU.

    For a given runtime, files that were verified in it are preferred. An int8 file that this CPU computes wrongly is
    used only where its precision is given, with a warning.
    """
    if runtime == "tensorrt":  # engines are files of their own; export compared them with fp32 on this kind of GPU
        order = ("int8", "fp32", "fp16")
        engine = choose_file(manifest, precision, has_int8_dot_product=True, order=order, suffix=PLAN)
        return RunnableFile(file=engine, runtime=runtime)
    # A GPU or another accelerator accumulates int8 products without saturation, whatever the CPU does.
    is_int8_exact = has_int8_dot_product() or not (provider or "cpu").lower().startswith("cpu")
    verified = tuple(runnable.file for runnable in verified_runnable_files(manifest) if runnable.runtime == runtime)
    usable = tuple(file for file in verified if is_int8_exact or not file.needs_int8_dot_products)
    if usable and precision is None:
        # `choose_file` then picks among these files only.
        manifest = manifest.model_copy(update={"files": usable})
    file = choose_file(manifest, precision, has_int8_dot_product=is_int8_exact)
    if runtime in RUNTIMES and file not in verified:
        log.warning("%s was not verified in %s: `edgeembed bench` measures what it keeps there", file.path, runtime)
    if file.needs_int8_dot_products and not is_int8_exact:
        log.warning(
            "%s has 8-bit weights, and this CPU is not known to have int8 dot products: products may saturate, and "
            "embeddings are not those that were verified: use precision fp32, or export the run again, which gives "
            "7-bit weights",
            file.path,
        )
    return RunnableFile(file=file, runtime=runtime or file.runtime)


def verified_with_weights(folder: Path, manifest: BundleManifest, file: BundleFile) -> Path:
    """The path of a file, after verifying its checksum and those of its external weights (`model.fp32.onnx.data`)."""
    # Large ONNX files keep their weights beside them, in files whose names begin with theirs.
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
    """Embeddings (M, dim) of the M images that can be decoded, and the positions (M,) of those images.

    The network runs on one batch while threads decode the next. `on_skip` is called with one line for each image that
    is left out, which names it and the reason; `on_progress` with the number of images done.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: expected at least 1")
    # An empty first block, so that the result has the right shape where no image can be decoded.
    embeddings: list[FloatArray] = [np.empty((0, model.dim), np.float32)]
    kept: list[int] = []
    batch: list[UInt8Array] = []
    for position, decoded in enumerate(decode_ahead(images, model.shape)):
        if isinstance(decoded, ImageError):
            on_skip(str(decoded))
        else:
            # A run in torch may take images of several shapes; only images of one shape form a batch.
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


def check_pixels(image_NHWC: UInt8Array, height: int, width: int) -> None:
    """Raises UserError for anything but (N, height, width, 3) uint8."""
    expected = f"expected a uint8 array (N, {height}, {width}, 3)"
    if not isinstance(image_NHWC, np.ndarray):
        raise UserError(f"pixels are of type {type(image_NHWC).__name__}: {expected}")
    if image_NHWC.dtype != np.uint8:
        raise UserError(f"pixels are {image_NHWC.dtype}: {expected}, RGB, 0..255")
    if image_NHWC.ndim != 4 or image_NHWC.shape[1:] != (height, width, 3):
        raise UserError(f"pixels have shape {image_NHWC.shape}: {expected}")


def raise_image_error(message: str) -> None:
    """An `on_skip` for callers that need every image."""
    raise ImageError(message)
