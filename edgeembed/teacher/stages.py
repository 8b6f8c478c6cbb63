"""Plans the stages of a teacher run before it starts: the steps of each, its images and the order of their visits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from edgeembed.data.batch_order import BatchOrder, EpochVisits
from edgeembed.data.manifest import Rows
from edgeembed.data.sampling import resample
from edgeembed.data.shapes import Shapes, aspect_shapes, square_shapes
from edgeembed.teacher.margin import class_margins, dynamic_margins
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.training.schedule import learning_rate_factor

STORED_COST = 1e-3  # of a step on stored features, as a share of one on images (EfficientNet-Lite0, 224 px, CPU)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The steps of a run from `begin` up to, not including, `end`; `order` is the order of `visits` in each epoch.

    `recipe` is the run's recipe with the changes of this stage. Methods take steps of the run, counted from 0.
    """

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

    def num_images_from(self, first_step: int) -> int:
        """How many images the backbone computes in training from a step of the run on, each counted at every visit."""
        if self.recipe.backbone.stored_views is not None:
            return 0
        return self.order.batch_size * max(0, self.end - max(first_step, self.begin))

    def epoch(self, step: int) -> int:
        """Which of the run's epochs a step is in."""
        return self.order.epoch(step - self.begin)

    def learning_rate_factor(self, step: int) -> float:
        """Factor on every learning rate at a step."""
        return learning_rate_factor(
            step - self.begin,
            steps_per_epoch=self.order.steps_per_epoch,
            total_steps=self.end - self.begin,
            section=self.recipe.optim,
        )

    def first_margins(self, num_images_K: Sequence[int]) -> Tensor:
        """The margin of each class at the start of the stage, (K,); by its number of images with `class_margins`."""
        head = self.recipe.head
        smallest, largest = head.class_margins or (head.margin, head.margin)
        return class_margins(num_images_K, smallest=smallest, largest=largest)

    def margins(self, step: int, margin_K: Tensor) -> Tensor:
        """The margin of each class at a step, (K,), from those at the start of the stage."""
        head = self.recipe.head
        return dynamic_margins(
            self.epoch(step) - self.order.first_epoch,
            margin_K,
            growth_per_epoch=head.margin_growth_per_epoch,
            margin_max=head.margin_max,
        )

    def view_px(self, step: int) -> int:
        """Side of the training views, or of squares of their area, at a step of the run."""
        return self.recipe.image.view_px((step - self.begin) / (self.end - self.begin))

    def view_shape(self, step: int, canvas_px: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the training views of a batch of canvases."""
        view_px = self.view_px(step)
        if not self.recipe.image.keep_aspect:
            return view_px, view_px
        # The canvas's proportions at the area of the view, in multiples of 16 as in `aspect_shapes`.
        height, width = (max(16, round(side * view_px / canvas_side(self.recipe) / 16) * 16) for side in canvas_px)
        return height, width


def canvas_side(recipe: TeacherRecipe) -> int:
    """Side of the squares that views are cut from, or of squares of their area."""
    return round(recipe.image.view_px() * recipe.image.canvas_factor)


def canvas_shapes(recipe: TeacherRecipe, files: Sequence[str]) -> Shapes:
    """Height and width in pixels that each file is decoded to, (N, 2).

    A shape that fewer images have than a batch holds becomes a square. A single square takes the shape that most images
    have: a batch of one image teaches little, and batch norm cannot take it.
    """
    if not recipe.image.keep_aspect:
        return square_shapes(len(files), canvas_side(recipe))
    shapes_N2 = aspect_shapes(files, canvas_side(recipe), workers=recipe.train.workers)
    # NumPy 2.0.0 gives the inverse a second dimension: hence `reshape(-1)`.
    _, group_N, count_G = np.unique(shapes_N2, axis=0, return_inverse=True, return_counts=True)
    shapes_N2[count_G[group_N.reshape(-1)] < recipe.train.batch_size] = canvas_side(recipe)
    if recipe.train.batch_size > 1:
        shape_G2, group_N, count_G = np.unique(shapes_N2, axis=0, return_inverse=True, return_counts=True)
        shapes_N2[count_G[group_N.reshape(-1)] == 1] = shape_G2[count_G.argmax()]
    return shapes_N2


def plan_stages(
    recipe: TeacherRecipe, files: Sequence[str], class_of_image: Rows, visits_of_image: Rows, readable: Rows
) -> list[Stage]:
    """The stages of a run. `train.max_steps` limits the whole run, so that later stages may be shortened or left out.

    `visits_of_image`, (N,): how often an epoch visits each image before `sampling` balances the classes. `readable`:
    the images that can be decoded.
    """
    stages: list[Stage] = []
    begin = first_epoch = 0
    views_seen_N = np.zeros(len(files), dtype=np.int64)  # in earlier stages, which may visit an image more often
    for name, settings in recipe.resolve_stages():
        train = settings.train
        shapes_N2 = canvas_shapes(settings, files)
        sampling = settings.sampling
        # The images that an epoch visits: readable, repeated as in the manifest, classes balanced.
        image_V = balanced(
            np.repeat(readable, visits_of_image[readable]),
            class_of_image,
            cap=sampling.cap,
            repeat_to=sampling.repeat_to,
            seed=train.seed,
        )
        # The order of these visits. With kept proportions, a batch holds images of one shape.
        _, group_V = np.unique(shapes_N2[image_V], axis=0, return_inverse=True)
        order = BatchOrder(
            num_images=len(image_V),
            batch_size=min(train.batch_size * train.accumulate_steps, len(image_V)),
            seed=train.seed,
            group_N=group_V.reshape(-1) if settings.image.keep_aspect else None,
            first_epoch=first_epoch,
        )
        # `max_steps` counts over all stages; 2**62 stands for no limit.
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


def step_costs(stages: Sequence[Stage]) -> list[float]:
    """Relative cost of each step of a run, (S,): the pixels of its batch; far fewer with stored features."""
    return [
        stage.view_px(step) ** 2
        * stage.order.batch_size
        * (1.0 if stage.recipe.backbone.stored_views is None else STORED_COST)
        for stage in stages
        for step in range(stage.begin, stage.end)
    ]


def time_left_remark(stages: Sequence[Stage]) -> str:
    """A remark on estimates of the time left; empty where all steps do the same work."""
    mixed = len({stage.recipe.backbone.stored_views is None for stage in stages}) > 1
    return "; a rough estimate, from steps on stored features" if mixed else ""


def balanced(images: Rows, class_of_image: Rows, *, cap: int | None, repeat_to: int, seed: int) -> Rows:
    """The images that an epoch visits, (V,).

    Of each class at most `cap` images (None: all), drawn at random; a small class is repeated up to `repeat_to` visits.
    """
    if cap is None and repeat_to == 1:
        return images
    draw = random.Random(seed)
    visits: list[int] = []
    for number in np.unique(class_of_image[images]):
        of_class = images[class_of_image[images] == number].tolist()
        visits += resample(of_class, cap=cap, repeat_to=repeat_to, rng=draw)
    return np.array(visits, dtype=np.int64)
