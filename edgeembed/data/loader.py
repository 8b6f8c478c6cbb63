"""Decodes images for training, evaluation and targets: batches from memory or from worker processes.

A canvas is a decoded image, resized to the size that training views are cut from. Which images a batch holds is decided
in batch_order.py.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edgeembed.arrays import UInt8Array
from edgeembed.config import TrainSection
from edgeembed.data.manifest import Rows
from edgeembed.data.shapes import Shapes
from edgeembed.device.images import ImageError, load_pixels, load_rgb
from edgeembed.errors import UserError
from edgeembed.machine import describe_machine
from edgeembed.progress import track

log = logging.getLogger(__name__)

DecodedBatch: TypeAlias = tuple[Rows, Tensor, list[tuple[int, str]]]  # image numbers, canvases, (image, error)

MEMORY_SHARE = 0.3  # of the free memory: larger sets of canvases are decoded again in every epoch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Canvases of the images that could be decoded. `image_B`: their positions in the loader's list of files."""

    image_B: Rows
    canvas_BCHW: Tensor  # uint8, 0..255


@dataclass(frozen=True, kw_only=True)
class CanvasLoader:
    """Decodes files to canvases of `shapes_N2` (height, width), or serves them from `memory`.

    A file that cannot be decoded is logged once, added to `unreadable` and left out of its batch. With `reduced`, files
    are decoded faster and less exactly, which is enough for training views: see `load_canvas`.
    """

    files: Sequence[str]
    shapes_N2: Shapes
    workers: int
    memory: list[UInt8Array] | None = None
    unreadable: set[int] = field(default_factory=set)
    reduced: bool = False

    def batches(self, image_batches: Sequence[Rows]) -> Iterator[Batch]:
        """Yields one batch for each list of image numbers, in order; the images of a list share one shape.

        A batch is smaller than its list, or empty, where files cannot be decoded.
        """
        if self.memory is not None:
            for image_B in image_batches:
                kept_B = image_B[[image not in self.unreadable for image in image_B]] if self.unreadable else image_B
                yield Batch(image_B=kept_B, canvas_BCHW=stack([self.memory[image] for image in kept_B]))
            return
        workers = min(self.workers, describe_machine().cores)
        loader: DataLoader[DecodedBatch] = DataLoader(
            _BatchDataset(self.files, self.shapes_N2, image_batches, self.reduced),
            # The items of the data set are whole batches already.
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            # DataLoader refuses this option without workers.
            prefetch_factor=4 if workers else None,
            worker_init_fn=_ignore_stop_signals,
        )
        for image_B, canvas_BCHW, failures in loader:
            for image, reason in failures:
                self.skip(image, reason)
            yield Batch(image_B=image_B, canvas_BCHW=canvas_BCHW)

    def skip(self, image: int, reason: str) -> None:
        """Marks an image as unreadable and logs the reason, once."""
        if image not in self.unreadable:
            self.unreadable.add(image)
            log.warning("skipped: %s", reason)

    def readable(self) -> Rows:
        """Numbers of the images that are not known to be unreadable."""
        return np.array([image for image in range(len(self.files)) if image not in self.unreadable], dtype=np.int64)


def _ignore_stop_signals(_worker: int) -> None:
    """Ctrl-C and `timeout` signal the whole process group: the main process saves its state, then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def load_canvas(path: str, height: int, width: int, *, reduced: bool) -> UInt8Array:
    """Decodes a file and resizes it to (height, width, 3) uint8, without keeping its proportions.

    Without `reduced`, exactly as `images.load_pixels` does for evaluation. With it, faster: the decoder drops JPEG
    detail beyond twice the canvas, and torch's antialiased resize takes a third of Pillow's time. The result differs
    from Pillow's by one grey level in a few of 10,000 values, which crops and colour changes of training views hide.
    """
    if not reduced:
        return load_pixels(path, height, width)
    # np.array copies: torch warns about the read-only memory of a PIL image.
    pixels_HWC = np.array(load_rgb(path, at_least_px=2 * max(height, width)))
    image_1CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None]
    resized = F.interpolate(image_1CHW, (height, width), mode="bilinear", antialias=True)
    canvas_HWC: UInt8Array = np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
    return canvas_HWC


def stack(images: Sequence[UInt8Array]) -> Tensor:
    """Stacks (H, W, 3) arrays of one shape to a batch (B, 3, H, W) in channels_last memory format."""
    stacked = np.stack(images) if images else np.zeros((0, 1, 1, 3), np.uint8)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def _unchanged(batch: Any) -> Any:
    """Replaces DataLoader's own collation, which would turn image numbers into tensors."""
    return batch


class _BatchDataset(Dataset[DecodedBatch]):
    """A dataset whose items are whole batches, each decoded in one worker process."""

    def __init__(self, files: Sequence[str], shapes_N2: Shapes, image_batches: Sequence[Rows], reduced: bool) -> None:
        self.files, self.shapes_N2, self.image_batches, self.reduced = files, shapes_N2, image_batches, reduced

    def __len__(self) -> int:
        return len(self.image_batches)

    def __getitem__(self, number: int) -> DecodedBatch:
        kept, pixels, failures = [], [], []
        for image in self.image_batches[number]:
            try:
                pixels.append(load_canvas(self.files[image], *self.shapes_N2[image].tolist(), reduced=self.reduced))
                kept.append(image)
            except ImageError as error:
                failures.append((int(image), str(error)))
        return np.array(kept, dtype=np.int64), stack(pixels), failures


def open_canvases(
    files: Sequence[str], *, shapes_N2: Shapes, workers: int, cache: str = "never", visits: int = 0
) -> CanvasLoader:
    """Returns a loader for training views; depending on `cache`, all canvases are decoded into memory first.

    `visits` is the number of images that the run will request in total. With `cache="auto"` the files are decoded ahead
    where the canvases fit into MEMORY_SHARE of the free memory and are used more than once.
    Raises UserError when no file at all can be decoded.
    """
    needed_bytes = int(shapes_N2.prod(axis=1).sum()) * 3
    fits = needed_bytes <= MEMORY_SHARE * psutil.virtual_memory().available
    if cache == "never" or (cache == "auto" and not (fits and visits > len(files))):
        return CanvasLoader(files=files, shapes_N2=shapes_N2, workers=workers, reduced=True)
    # Threads fill the list in any order; unreadable images keep the empty array and are never served.
    empty = np.zeros((0, 0, 3), np.uint8)
    memory: list[UInt8Array] = [empty] * len(files)
    canvases = CanvasLoader(files=files, shapes_N2=shapes_N2, workers=workers, memory=memory, reduced=True)

    def decode(image: int) -> tuple[int, str | None]:
        try:
            memory[image] = load_canvas(files[image], *shapes_N2[image].tolist(), reduced=True)
        except ImageError as error:
            return image, str(error)
        return image, None

    with ThreadPoolExecutor(max(1, workers)) as pool:  # decoding releases the GIL
        for image, reason in track(pool.map(decode, range(len(files))), "decoding", total=len(files)):
            if reason is not None:
                canvases.skip(image, reason)
    if len(canvases.unreadable) == len(files):
        raise UserError(f"none of {len(files)} images can be decoded, first {files[0]}: run `edgeembed data check`")
    return canvases


def open_training_canvases(train: TrainSection, files: Sequence[str], shapes_N2: Shapes) -> CanvasLoader:
    """Returns the loader for the images of a run or of one of its stages."""
    # 2**62 stands for no limit of steps.
    visits = min(train.epochs * len(files), (train.max_steps or 2**62) * train.batch_size * train.accumulate_steps)
    return open_canvases(files, shapes_N2=shapes_N2, workers=train.workers, cache=train.cache, visits=visits)
