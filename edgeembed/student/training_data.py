"""The training images of a distillation run, and which views of them each step trains on."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from edgeembed.data.batch_order import BatchOrder, EpochVisits
from edgeembed.data.loader import CanvasLoader, open_training_canvases
from edgeembed.data.manifest import Manifest, Rows
from edgeembed.data.shapes import square_shapes
from edgeembed.errors import UserError
from edgeembed.progress import stage
from edgeembed.student.recipe import DistillRecipe
from edgeembed.student.targets.provider import training_canvas_px
from edgeembed.student.teachers import Teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The decoded training images of a run, and which views of them each step trains on.

    `num_visits`: how often the run visits the image that it visits most. `num_views`: how many different views of an
    image there are; the run goes through them again and again, so that the teacher embeds each of them once.
    """

    canvases: CanvasLoader
    visits: EpochVisits
    order: BatchOrder
    epochs: int
    total_steps: int
    num_visits: int
    num_views: int

    def samples(self, first_step: int) -> list[tuple[Rows, Rows]]:
        """Images and their views, (B,) each, of each batch from a step to the end of the run."""
        samples = []
        for step, number_B in enumerate(self.order.batches(first_step, self.total_steps), start=first_step):
            image_B, view_B = self.visits.samples(number_B, self.order.epoch(step))
            # After its last view, an image is shown in its first one again.
            samples.append((image_B, view_B % self.num_views))
        return samples

    @property
    def time_left_remark(self) -> str:
        """What an estimate from the first steps does not know, where stored teacher embeddings are used."""
        if self.num_views >= self.num_visits:
            return ""
        visits_per_epoch = self.num_visits // self.epochs
        return f"; less from epoch {self.num_views // visits_per_epoch + 1} of {self.epochs} on, when views recur"


def open_training_data(recipe: DistillRecipe, manifest: Manifest, rows: Rows, teacher: Teacher) -> TrainingData:
    """Opens the images that can be decoded and that the teacher has embeddings for.

    Raises UserError for fewer than two.
    """
    train = recipe.train
    files = [manifest.files[row] for row in rows]
    with stage(f"reading {len(files)} training images"):
        canvas_px = training_canvas_px(recipe, teacher.size_px)
        canvases = open_training_canvases(train, files, square_shapes(len(files), canvas_px))
    readable = canvases.readable()
    usable = teacher.usable(readable)
    if usable.size < readable.size:
        log.warning("the teacher has no embedding of %d training images: left out", readable.size - usable.size)
    if usable.size < 2:
        raise UserError(f"{usable.size} of {len(files)} training images can be used, distillation needs at least 2")
    # The manifest's `repeat`: several visits in an epoch, each in another view.
    visits = EpochVisits.from_images(np.repeat(usable, manifest.visits(rows)[usable]))
    # The images of one optimiser step; its micro-batches are cut from them.
    batch_size = min(train.batch_size * train.accumulate_steps, len(visits))
    order = BatchOrder(num_images=len(visits), batch_size=batch_size, seed=train.seed)
    num_visits = train.epochs * int(visits.visits_per_epoch_V.max())
    return TrainingData(
        canvases=canvases,
        visits=visits,
        order=order,
        epochs=train.epochs,
        total_steps=min(train.epochs * order.steps_per_epoch, train.max_steps or 2**62),
        num_visits=num_visits,
        num_views=min(recipe.targets.views, num_visits),
    )
