"""Feeds batches of decoded images to a training loop, resumable at any step, from memory or from worker processes."""

from __future__ import annotations

import logging
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

ReadBatch: TypeAlias = tuple[Rows, Tensor, list[tuple[int, str]]]  # image numbers, pixels, failures

MEMORY_SHARE = 0.3  # of what is free: decoded images above it are read again from disk instead


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images that could be decoded: `image_B` numbers them in the source's file list."""

    image_B: Rows
    canvas_BCHW: Tensor  # uint8, 0..255


@dataclass(frozen=True, kw_only=True)
class Canvases:
    """Files decoded to `shapes_N2` (height, width), held in memory when they fit.

    A file that cannot be decoded is named in the log once, listed in `unreadable`, and left out of its batch.
    `reduced` says that files are decoded faster, for training views: see `load_canvas`.
    """

    files: Sequence[str]
    shapes_N2: Shapes
    workers: int
    memory: list[UInt8Array] | None = None
    unreadable: set[int] = field(default_factory=set)
    reduced: bool = False

    def batches(self, wanted: Sequence[Rows]) -> Iterator[Batch]:
        """The batches asked for, in order, each of images of one shape; one may come smaller, or empty, where files
        cannot be decoded.
        """
        if self.memory is not None:
            for image_B in wanted:
                kept = image_B[[image not in self.unreadable for image in image_B]] if self.unreadable else image_B
                yield Batch(image_B=kept, canvas_BCHW=stack([self.memory[image] for image in kept]))
            return
        workers = min(self.workers, describe_machine().cores)
        loader: DataLoader[ReadBatch] = DataLoader(
            _BatchReader(self.files, self.shapes_N2, wanted, self.reduced),
            batch_size=None,
            collate_fn=_as_read,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
        )
        for image_B, canvas_BCHW, failures in loader:
            for image, reason in failures:
                self.skip(image, reason)
            yield Batch(image_B=image_B, canvas_BCHW=canvas_BCHW)

    def skip(self, image: int, reason: str) -> None:
        if image not in self.unreadable:
            self.unreadable.add(image)
            log.warning("skipped: %s", reason)

    def readable(self) -> Rows:
        """Numbers of the files not known to be unreadable."""
        return np.array([image for image in range(len(self.files)) if image not in self.unreadable], dtype=np.int64)


def load_canvas(path: str, height: int, width: int, *, reduced: bool) -> UInt8Array:
    """Decodes and squashes a file: (H, W, 3) uint8, exactly as `images.load_pixels` does, or, where `reduced`, faster.

    Training views are cropped, turned and recoloured anyway. For them JPEG detail beyond twice the canvas is left
    out by the decoder, and torch's antialiased resize takes a third of Pillow's time; it differs from Pillow's by one
    grey level in a few of 10,000 values.
    """
    if not reduced:
        return load_pixels(path, height, width)
    pixels_HWC = np.array(load_rgb(path, at_least_px=2 * max(height, width)))
    image_1CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None]
    resized = F.interpolate(image_1CHW, (height, width), mode="bilinear", antialias=True)
    canvas_HWC: UInt8Array = np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
    return canvas_HWC


def stack(images: Sequence[UInt8Array]) -> Tensor:
    """(H, W, 3) arrays of one shape to a batch (B, 3, H, W) in channels_last."""
    stacked = np.stack(images) if images else np.zeros((0, 1, 1, 3), np.uint8)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def _as_read(batch: Any) -> Any:
    """In place of the loader's own collation, which would turn row numbers into tensors."""
    return batch


class _BatchReader(Dataset[ReadBatch]):
    """Decodes one whole batch in a worker process."""

    def __init__(self, files: Sequence[str], shapes_N2: Shapes, wanted: Sequence[Rows], reduced: bool) -> None:
        self.files, self.shapes_N2, self.wanted, self.reduced = files, shapes_N2, wanted, reduced

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, number: int) -> ReadBatch:
        kept, pixels, failures = [], [], []
        for image in self.wanted[number]:
            try:
                pixels.append(load_canvas(self.files[image], *self.shapes_N2[image].tolist(), reduced=self.reduced))
                kept.append(image)
            except ImageError as error:
                failures.append((int(image), str(error)))
        return np.array(kept, dtype=np.int64), stack(pixels), failures


def open_canvases(
    files: Sequence[str], *, shapes_N2: Shapes, workers: int, cache: str = "never", visits: int = 0
) -> Canvases:
    """For training views: decodes all files into memory where `cache`, the free memory and the number of `visits` (how
    many images the run will ask for in total) speak for it, else prepares to read them as needed.

    Raises UserError when no file at all can be decoded.
    """
    needed = int(shapes_N2.prod(axis=1).sum()) * 3
    fits = needed <= MEMORY_SHARE * psutil.virtual_memory().available
    if cache == "never" or (cache == "auto" and not (fits and visits > len(files))):
        return Canvases(files=files, shapes_N2=shapes_N2, workers=workers, reduced=True)
    empty = np.zeros((0, 0, 3), np.uint8)
    memory: list[UInt8Array] = [empty] * len(files)
    canvases = Canvases(files=files, shapes_N2=shapes_N2, workers=workers, memory=memory, reduced=True)

    def decode(image: int) -> tuple[int, str | None]:
        try:
            memory[image] = load_canvas(files[image], *shapes_N2[image].tolist(), reduced=True)
        except ImageError as error:
            return image, str(error)
        return image, None

    with ThreadPoolExecutor(max(1, workers)) as pool:  # Pillow decodes and resizes without the interpreter's lock
        for image, reason in track(pool.map(decode, range(len(files))), "decoding", total=len(files)):
            if reason is not None:
                canvases.skip(image, reason)
    if len(canvases.unreadable) == len(files):
        raise UserError(f"none of {len(files)} images can be decoded, first {files[0]}: run `edgeembed data check`")
    return canvases


def open_training_canvases(train: TrainSection, files: Sequence[str], shapes_N2: Shapes) -> Canvases:
    """The images of a run, or of a stage of one, decoded into memory where its length speaks for it."""
    visits = min(train.epochs * len(files), (train.max_steps or 2**62) * train.batch_size * train.accumulate_steps)
    return open_canvases(files, shapes_N2=shapes_N2, workers=train.workers, cache=train.cache, visits=visits)


@dataclass(frozen=True, kw_only=True)
class Visits:
    """The V visits of an epoch. An image that is visited several times gets another view at each visit."""

    image_V: Rows
    first_view_V: Rows  # view of the visit in the first epoch
    times_V: Rows  # number of all visits of the same image in the list

    @classmethod
    def of(cls, image_V: Rows, views_seen_N: Rows | None = None) -> Visits:
        """From a list of image numbers, which may repeat.

        `views_seen_N` is the number of views of each image before the first epoch, by image number; None for none.
        """
        _, group_V, times_G = np.unique(image_V, return_inverse=True, return_counts=True)
        group_V = group_V.reshape(-1)
        by_image_V = np.argsort(group_V, kind="stable")
        first_G = np.cumsum(times_G) - times_G
        occurrence_V = np.empty(len(image_V), dtype=np.int64)
        occurrence_V[by_image_V] = np.arange(len(image_V)) - first_G[group_V[by_image_V]]
        seen_V = 0 if views_seen_N is None else views_seen_N[image_V]
        return cls(image_V=image_V, first_view_V=seen_V + occurrence_V, times_V=times_G[group_V])

    def __len__(self) -> int:
        return len(self.image_V)

    def samples(self, number_B: Rows, epoch: int) -> tuple[Rows, Rows]:
        """Image and view of some visits of an epoch, counted from 0, (B,) each; no view of an image recurs."""
        return self.image_V[number_B], epoch * self.times_V[number_B] + self.first_view_V[number_B]


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order in which images are visited, computed from (seed, step) alone, so that any step can be resumed.

    Where images are in groups (of one shape each), so are batches. `first_epoch` counts the epochs of a run before the
    first one here.
    """

    num_images: int
    batch_size: int
    seed: int
    group_N: Rows | None = None
    first_epoch: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """The last, partial batch of a group is left out of an epoch (its images come first-come in other epochs)."""
        sizes = [self.num_images] if self.group_N is None else np.unique(self.group_N, return_counts=True)[1]
        return sum(max(1, int(size) // self.batch_size) for size in sizes)

    def epoch(self, step: int) -> int:
        """Which of the run's epochs a step of this order is in."""
        return self.first_epoch + step // self.steps_per_epoch

    def wanted(self, first_step: int, last_step: int) -> list[Rows]:
        """Image numbers of each batch from `first_step` up to, not including, `last_step`."""
        batches: list[Rows] = []
        steps = self.steps_per_epoch
        for start in range(first_step // steps * steps, last_step, steps):
            epoch = self.batches_of_epoch(self.epoch(start))
            batches += epoch[max(0, first_step - start) : last_step - start]
        return batches

    def batches_of_epoch(self, epoch: int) -> list[Rows]:
        draw = np.random.default_rng((self.seed, epoch))
        shuffled = draw.permutation(self.num_images).astype(np.int64)
        if self.group_N is None:
            return cut(shuffled, self.batch_size)
        group_N = self.group_N[shuffled]
        batches = [batch for group in np.unique(group_N) for batch in cut(shuffled[group_N == group], self.batch_size)]
        return [batches[i] for i in draw.permutation(len(batches))]


def cut(images: Rows, batch_size: int) -> list[Rows]:
    """Whole batches, or a single smaller one."""
    return [images[i * batch_size : (i + 1) * batch_size] for i in range(max(1, len(images) // batch_size))]
