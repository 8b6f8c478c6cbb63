"""What each stage of a run trains on, and in which order, laid out for the whole run before it starts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeembed.data.batch_order import BatchOrder, EpochVisits
from edgeembed.data.manifest import Rows
from edgeembed.data.sampling import resample
from edgeembed.data.shapes import Shapes, aspect_shapes, square_shapes
from edgeembed.teacher.recipe import TeacherRecipe


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Steps `begin` up to, not including, `end` of a run; `order` is that of `visits`, in each epoch."""

    name: str
    recipe: TeacherRecipe
    shapes_N2: Shapes
    visits: EpochVisits
    order: BatchOrder
    begin: int
    end: int

    def samples(self, first_step: int) -> list[tuple[Rows, Rows]]:
        """Images and their views, (B,) each, of each batch from a step of the run to the end of the stage."""
        first = first_step - self.begin
        return [
            self.visits.samples(number_B, step // self.order.steps_per_epoch)
            for step, number_B in enumerate(self.order.batches(first, self.end - self.begin), start=first)
        ]

    def images_from(self, first_step: int) -> int:
        """How many images the stage shows from a step of the run on, each as often as it comes."""
        return self.order.batch_size * max(0, self.end - max(first_step, self.begin))

    def view_px(self, step: int) -> int:
        """Side of the training views, or of squares of their area, at a step of the run."""
        return self.recipe.image.view_px((step - self.begin) / (self.end - self.begin))

    def view_shape(self, step: int, canvas_px: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the training views of a batch of canvases."""
        view_px = self.view_px(step)
        if not self.recipe.image.keep_aspect:
            return view_px, view_px
        height, width = (max(16, round(side * view_px / canvas_side(self.recipe) / 16) * 16) for side in canvas_px)
        return height, width


def canvas_side(recipe: TeacherRecipe) -> int:
    """Side of the squares that views are cut from, or of squares of their area."""
    return round(recipe.image.view_px() * recipe.image.canvas_factor)


def canvas_shapes(recipe: TeacherRecipe, files: Sequence[str]) -> Shapes:
    """Height and width of each file's canvas, (N, 2); a shape that too few have for a batch becomes a square.

    A square that stays alone takes the shape that most images have: a batch of one image teaches little, and batch norm
    cannot take it.
    """
    if not recipe.image.keep_aspect:
        return square_shapes(len(files), canvas_side(recipe))
    shapes_N2 = aspect_shapes(files, canvas_side(recipe), workers=recipe.train.workers)
    _, group_N, count_G = np.unique(shapes_N2, axis=0, return_inverse=True, return_counts=True)
    shapes_N2[count_G[group_N.reshape(-1)] < recipe.train.batch_size] = canvas_side(recipe)
    if recipe.train.batch_size > 1:
        shape_G2, group_N, count_G = np.unique(shapes_N2, axis=0, return_inverse=True, return_counts=True)
        shapes_N2[count_G[group_N.reshape(-1)] == 1] = shape_G2[count_G.argmax()]
    return shapes_N2


def plan_stages(
    recipe: TeacherRecipe, files: Sequence[str], class_of_image: Rows, visits_of_image: Rows, readable: Rows
) -> list[Stage]:
    """Every stage with its order; `train.max_steps` bounds the run, so that later stages may be cut or left out.

    `visits_of_image`, (N,): `repeat` of each image in the manifest, from which `sampling` starts. `readable`: the
    images that can be decoded.
    """
    stages: list[Stage] = []
    begin = first_epoch = 0
    views_seen_N = np.zeros(len(files), dtype=np.int64)  # in earlier stages, which may visit an image more often
    for name, settings in recipe.resolve_stages():
        train = settings.train
        shapes_N2 = canvas_shapes(settings, files)
        sampling = settings.sampling
        image_V = balanced(
            np.repeat(readable, visits_of_image[readable]),
            class_of_image,
            cap=sampling.cap,
            repeat_to=sampling.repeat_to,
            seed=train.seed,
        )
        _, group_V = np.unique(shapes_N2[image_V], axis=0, return_inverse=True)
        order = BatchOrder(
            num_images=len(image_V),
            batch_size=min(train.batch_size * train.accumulate_steps, len(image_V)),
            seed=train.seed,
            group_N=group_V.reshape(-1) if settings.image.keep_aspect else None,
            first_epoch=first_epoch,
        )
        end = min(begin + train.epochs * order.steps_per_epoch, recipe.train.max_steps or 2**62)
        if end > begin:
            stages.append(
                Stage(
                    name=name,
                    recipe=settings,
                    shapes_N2=shapes_N2,
                    visits=EpochVisits.from_images(image_V, views_seen_N),
                    order=order,
                    begin=begin,
                    end=end,
                )
            )
        begin, first_epoch = end, first_epoch + train.epochs
        views_seen_N = views_seen_N + train.epochs * np.bincount(image_V, minlength=len(files))
    return stages


def work_of(stages: Sequence[Stage]) -> list[float]:
    """What each step of a run costs beside the others: the pixels of its batch."""
    return [
        float(stage.view_px(step) ** 2 * stage.order.batch_size)
        for stage in stages
        for step in range(stage.begin, stage.end)
    ]


def balanced(images: Rows, class_of_image: Rows, *, cap: int | None, repeat_to: int, seed: int) -> Rows:
    """Images to visit in an epoch: at most `cap` of a class, drawn at random; small classes repeated to `repeat_to`."""
    if cap is None and repeat_to == 1:
        return images
    draw = random.Random(seed)
    visits: list[int] = []
    for number in np.unique(class_of_image[images]):
        of_class = images[class_of_image[images] == number].tolist()
        visits += resample(of_class, cap=cap, repeat_to=repeat_to, rng=draw)
    return np.array(visits, dtype=np.int64)
