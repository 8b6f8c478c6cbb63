"""Which views of which images each step of a distillation run trains on."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from edgeembed.data.batch_order import BatchOrder, EpochVisits
from edgeembed.data.loader import CanvasLoader
from edgeembed.data.shapes import square_shapes
from edgeembed.student.training_data import TrainingData


def five_epochs(*, num_views: int) -> TrainingData:
    """Four images in batches of two."""
    return TrainingData(
        canvases=CanvasLoader(files=["x.png"] * 4, shapes_N2=square_shapes(4, 8), workers=0),
        visits=EpochVisits.from_images(np.arange(4)),
        order=BatchOrder(num_images=4, batch_size=2, seed=0),
        epochs=5,
        total_steps=10,
        num_visits=5,
        num_views=num_views,
    )


def test_views_recur_after_the_last_one() -> None:
    views_of = defaultdict(list)
    for image_B, view_B in five_epochs(num_views=2).samples(0):
        for image, view in zip(image_B.tolist(), view_B.tolist(), strict=True):
            views_of[image].append(view)
    assert views_of == {image: [0, 1, 0, 1, 0] for image in range(4)}


def test_a_resumed_run_gets_the_samples_that_are_left() -> None:
    whole, rest = five_epochs(num_views=3).samples(0), five_epochs(num_views=3).samples(7)
    for (image_B, view_B), (rest_image_B, rest_view_B) in zip(whole[7:], rest, strict=True):
        assert np.array_equal(image_B, rest_image_B)
        assert np.array_equal(view_B, rest_view_B)


@pytest.mark.parametrize(
    ("num_views", "remark"), [(2, "; less from epoch 3 of 5 on, when views recur"), (5, ""), (9, "")]
)
def test_an_estimate_names_the_epoch_from_which_stored_embeddings_save_time(num_views: int, remark: str) -> None:
    assert five_epochs(num_views=num_views).time_left_remark == remark
