"""Decides which images, in which order, and in which view a training run sees: the same after a resume.

Nothing here keeps state between steps. The batches of an epoch follow from (seed, epoch) and the view of an image from
(epoch, its place in the epoch), so a run that resumes at any step continues as if it had never stopped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeembed.data.manifest import Rows


@dataclass(frozen=True, kw_only=True)
class BatchOrder:
    """The order of batches. Each epoch shuffles all images with a random generator seeded by (seed, epoch).

    `group_N` gives the group of each image, such as one group for each image shape; a batch then holds images of one
    group. `first_epoch` is the number of epochs that earlier stages of the run took.
    """

    num_images: int
    batch_size: int
    seed: int
    group_N: Rows | None = None
    first_epoch: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch. The last, partial batch of each group is dropped.

        The shuffle differs between epochs, so other images are dropped each time.
        """
        sizes = [self.num_images] if self.group_N is None else np.unique(self.group_N, return_counts=True)[1]
        return sum(max(1, int(size) // self.batch_size) for size in sizes)

    def epoch(self, step: int) -> int:
        """The epoch of the run, counted from 0 and over all stages, that a step of this order belongs to."""
        return self.first_epoch + step // self.steps_per_epoch

    def batches(self, first_step: int, last_step: int) -> list[Rows]:
        """Image numbers (B,) of each batch from `first_step` up to, but not including, `last_step`."""
        batches: list[Rows] = []
        steps = self.steps_per_epoch
        # Whole epochs are drawn and then cut, so that the result does not depend on where the run resumes.
        for start in range(first_step // steps * steps, last_step, steps):
            epoch = self._batches_of_epoch(self.epoch(start))
            batches += epoch[max(0, first_step - start) : last_step - start]
        return batches

    def _batches_of_epoch(self, epoch: int) -> list[Rows]:
        rng = np.random.default_rng((self.seed, epoch))
        shuffled = rng.permutation(self.num_images).astype(np.int64)
        if self.group_N is None:
            return _split(shuffled, self.batch_size)
        group_N = self.group_N[shuffled]
        batches = [
            batch for group in np.unique(group_N) for batch in _split(shuffled[group_N == group], self.batch_size)
        ]
        # Shuffled again over all groups, or an epoch would show one group after the other.
        return [batches[i] for i in rng.permutation(len(batches))]


def _split(images: Rows, batch_size: int) -> list[Rows]:
    """Full batches of the images; a single smaller batch where there are fewer images than `batch_size`."""
    return [images[i * batch_size : (i + 1) * batch_size] for i in range(max(1, len(images) // batch_size))]


@dataclass(frozen=True, kw_only=True)
class EpochVisits:
    """The V visits of an epoch: an image that the manifest repeats is visited several times, each time in a new view.

    `image_V`: the image of each visit. `first_view_V`: the number of the view that the visit shows in epoch 0.
    `visits_per_epoch_V`: how often an epoch visits the image of this visit.
    """

    image_V: Rows
    first_view_V: Rows
    visits_per_epoch_V: Rows

    @classmethod
    def from_images(cls, image_V: Rows, views_seen_N: Rows | None = None) -> EpochVisits:
        """Builds the visits from a list of image numbers, which may repeat.

        `views_seen_N`: by image number, the views that earlier stages have shown; None where there were none.
        """
        _, group_V, size_G = np.unique(image_V, return_inverse=True, return_counts=True)
        group_V = group_V.reshape(-1)
        by_image_V = np.argsort(group_V, kind="stable")
        # Where the visits of each image begin, once all visits are sorted by image.
        first_G = np.cumsum(size_G) - size_G
        # The n-th visit of an image within the epoch gets n, counted from 0.
        occurrence_V = np.empty(len(image_V), dtype=np.int64)
        occurrence_V[by_image_V] = np.arange(len(image_V)) - first_G[group_V[by_image_V]]
        seen_V = 0 if views_seen_N is None else views_seen_N[image_V]
        return cls(image_V=image_V, first_view_V=seen_V + occurrence_V, visits_per_epoch_V=size_G[group_V])

    def __len__(self) -> int:
        return len(self.image_V)

    def samples(self, number_B: Rows, epoch: int) -> tuple[Rows, Rows]:
        """Image and view number (B,) of the visits `number_B` in an epoch, counted from 0.

        No image is shown twice in the same view during a run.
        """
        return self.image_V[number_B], epoch * self.visits_per_epoch_V[number_B] + self.first_view_V[number_B]
