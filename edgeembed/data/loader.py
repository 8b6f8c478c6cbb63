"""Feeds batches of decoded squares to a training loop, resumable at any step, from memory or from worker processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edgeembed.data.manifest import Rows
from edgeembed.errors import UserError
from edgeembed.images import ImageError, load_pixels
from edgeembed.progress import track
from edgeembed.run import machine

log = logging.getLogger(__name__)

ReadBatch: TypeAlias = tuple[Rows, Tensor, list[tuple[int, str]]]  # image numbers, squares, failures

MEMORY_SHARE = 0.3  # of what is free: decoded squares above it are read again from disk instead


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Squares that could be decoded: `image_B` numbers them in the source's file list."""

    image_B: Rows
    canvas_BCHW: Tensor  # uint8, 0..255


@dataclass(frozen=True, kw_only=True)
class Squares:
    """Files decoded to squares of one size, held in memory when they fit.

    A file that cannot be decoded is named in the log once, listed in `unreadable`, and left out of its batch.
    """

    files: Sequence[str]
    size_px: int
    workers: int
    memory_NCHW: Tensor | None = None
    unreadable: set[int] = field(default_factory=set)

    def batches(self, wanted: Sequence[Rows]) -> Iterator[Batch]:
        """The batches asked for, in order; one may come smaller, or empty, where files cannot be decoded."""
        if self.memory_NCHW is not None:
            for image_B in wanted:
                kept = image_B[[image not in self.unreadable for image in image_B]] if self.unreadable else image_B
                yield Batch(image_B=kept, canvas_BCHW=self.memory_NCHW[torch.from_numpy(kept)])
            return
        workers = min(self.workers, machine()["cores"])
        loader: DataLoader[ReadBatch] = DataLoader(
            _BatchReader(self.files, wanted, self.size_px),
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


def _as_read(batch: Any) -> Any:
    """In place of the loader's own collation, which would turn row numbers into tensors."""
    return batch


class _BatchReader(Dataset[ReadBatch]):
    """Decodes one whole batch in a worker process."""

    def __init__(self, files: Sequence[str], wanted: Sequence[Rows], size_px: int) -> None:
        self.files, self.wanted, self.size_px = files, wanted, size_px

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, number: int) -> ReadBatch:
        kept, pixels, failures = [], [], []
        for image in self.wanted[number]:
            try:
                pixels.append(load_pixels(self.files[image], self.size_px, self.size_px))
                kept.append(image)
            except ImageError as error:
                failures.append((int(image), str(error)))
        stacked = np.stack(pixels) if pixels else np.zeros((0, self.size_px, self.size_px, 3), np.uint8)
        return np.array(kept, dtype=np.int64), torch.from_numpy(stacked).permute(0, 3, 1, 2), failures


def open_squares(files: Sequence[str], *, size_px: int, workers: int, cache: str, visits: int) -> Squares:
    """Decodes all files into memory where `cache`, the free memory and the number of `visits` (how many images the
    run will ask for in total) speak for it, else prepares to read them as needed.

    Raises UserError when no file at all can be decoded.
    """
    needed = len(files) * size_px * size_px * 3
    fits = needed <= MEMORY_SHARE * psutil.virtual_memory().available
    if cache == "never" or (cache == "auto" and not (fits and visits > len(files))):
        return Squares(files=files, size_px=size_px, workers=workers)
    memory_NCHW = torch.empty((len(files), 3, size_px, size_px), dtype=torch.uint8, memory_format=torch.channels_last)
    squares = Squares(files=files, size_px=size_px, workers=workers, memory_NCHW=memory_NCHW)
    target_NHWC = memory_NCHW.permute(0, 2, 3, 1).numpy()

    def decode(image: int) -> tuple[int, str | None]:
        try:
            target_NHWC[image] = load_pixels(files[image], size_px, size_px)
        except ImageError as error:
            return image, str(error)
        return image, None

    with ThreadPoolExecutor(max(1, workers)) as pool:  # Pillow decodes and resizes without the interpreter's lock
        for image, reason in track(pool.map(decode, range(len(files))), "decoding", total=len(files)):
            if reason is not None:
                squares.skip(image, reason)
    if len(squares.unreadable) == len(files):
        raise UserError(f"none of {len(files)} images can be decoded, first {files[0]}: run `edgeembed data check`")
    return squares


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of a whole training run, computed from (seed, step) alone, so that any step can be resumed."""

    num_images: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """The last, partial batch of an epoch is left out (its images come first-come in other epochs)."""
        return max(1, self.num_images // self.batch_size)

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def wanted(self, first_step: int, last_step: int) -> list[Rows]:
        """Image numbers of each batch from `first_step` up to, not including, `last_step`."""
        batches: list[Rows] = []
        for epoch in range(self.epoch(first_step), self.epoch(max(first_step, last_step - 1)) + 1):
            shuffled = np.random.default_rng((self.seed, epoch)).permutation(self.num_images)
            start = epoch * self.steps_per_epoch
            for step in range(max(first_step, start), min(last_step, start + self.steps_per_epoch)):
                begin = (step - start) * self.batch_size
                batches.append(shuffled[begin : begin + self.batch_size].astype(np.int64))
        return batches
