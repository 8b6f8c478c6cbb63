"""The labelled images that a teacher learns from, and the augmented views of a training step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeembed.data.augment import draw_views
from edgeembed.data.manifest import Manifest, Rows, class_indices
from edgeembed.data.views import mix_views, render_views
from edgeembed.errors import UserError
from edgeembed.teacher.stages import Stage


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """The N labelled images of a train split and their K classes.

    `row_N` are their manifest rows, `class_N` the position of each one's class in `classes`, (domain, label).
    """

    row_N: Rows
    files: list[str]
    class_N: Rows
    classes: list[tuple[str, str]]


def labelled_images(manifest: Manifest) -> LabelledImages:
    """The images that a manifest has for training. Raises UserError for fewer than two classes."""
    row_N = manifest.training_rows()
    classes = manifest.class_names(row_N)
    if len(classes) < 2:
        raise UserError(
            f"{manifest.source or 'the manifest'}: its train split has {len(classes)} labelled classes, a margin head "
            "needs at least 2: label more images, or distil from the embeddings of another model (`targets import`)"
        )
    class_N = class_indices(classes, manifest, row_N)
    # Class -1 is an image without a label, from which a margin head learns nothing.
    row_N, class_N = row_N[class_N >= 0], class_N[class_N >= 0]
    return LabelledImages(row_N=row_N, files=[manifest.files[row] for row in row_N], class_N=class_N, classes=classes)


@dataclass(frozen=True, kw_only=True)
class StepImages:
    """The images of a step that could be read, (B,), and the number of each one's view.

    `canvas_BCHW`: their canvases; empty where stored features take the place of views.
    """

    image_B: Rows
    view_B: Rows
    canvas_BCHW: Tensor


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The T classes of each view: two where images are mixed, else one.

    `share_TB` is how much of each view belongs to each of its classes; over T it adds up to 1.
    """

    label_TB: Tensor
    share_TB: Tensor

    @classmethod
    def of_images(cls, class_B: Rows, device: str) -> Labels:
        """The labels of images that are not mixed: one class each."""
        label_TB = torch.from_numpy(class_B).to(device)[None]
        return cls(label_TB=label_TB, share_TB=torch.ones_like(label_TB, dtype=torch.float32))


def render_labelled_views(
    stage: Stage, images: StepImages, micro: Rows, *, class_N: Rows, step: int, device: str
) -> tuple[Tensor, Labels]:
    """Augmented views (B, 3, H, W), 0..255, of a micro-batch at a step of the run, and their labels.

    `micro` are its positions among the images of the step, `class_N` the class of every training image. CutMix and
    mixup mix neighbours in the micro-batch.
    """
    recipe, seed = stage.recipe, stage.recipe.train.seed
    image_B, view_B = images.image_B[micro], images.view_B[micro]
    canvas_BCHW = images.canvas_BCHW[torch.from_numpy(micro)].to(device)
    height, width = canvas_BCHW.shape[2:]
    parameters = draw_views(recipe.augment, seed=seed, image_B=image_B, view=view_B)
    view_BCHW = render_views(canvas_BCHW, parameters, stage.view_shape(step, (height, width)))
    labels = Labels.of_images(class_N[image_B], device)
    if recipe.mix.mixes:
        # Mixed with images of the same batch, so that no further image is decoded.
        neighbour_BCHW = view_BCHW.roll(-1, dims=0)
        view_BCHW, neighbour_share_B = mix_views(
            view_BCHW, neighbour_BCHW, recipe.mix, seed=seed, image_B=image_B, view=view_B
        )
        # (2, B): the image's class, then its neighbour's.
        label_TB = torch.cat([labels.label_TB, labels.label_TB.roll(-1, dims=1)])
        labels = Labels(label_TB=label_TB, share_TB=torch.stack([1.0 - neighbour_share_B, neighbour_share_B]))
    return view_BCHW, labels
