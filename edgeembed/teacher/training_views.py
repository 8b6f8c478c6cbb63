"""The training views of a run, stage by stage: rendered at every step, or stored features of a frozen backbone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from edgeembed.data.loader import CanvasLoader, open_training_canvases
from edgeembed.data.manifest import Manifest, Rows
from edgeembed.data.shapes import Shapes
from edgeembed.network.model import EmbeddingModel
from edgeembed.progress import stage
from edgeembed.run_folder import RunFolder
from edgeembed.teacher.features import StoredFeatures, open_features
from edgeembed.teacher.images import LabelledImages, Labels, StepImages, render_labelled_views
from edgeembed.teacher.networks import TeacherNetworks
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.teacher.stages import Stage, canvas_shapes
from edgeembed.training.precision import autocast


class TrainingViews:
    """Gives each step its images, and each micro-batch its embeddings and labels.

    `canvases`: the decoded images of the present stage. `features`: the stored features of the first stage, where its
    recipe has `backbone.stored_views`; images are then decoded only while features are computed.
    """

    def __init__(self, recipe: TeacherRecipe, images: LabelledImages, device: str) -> None:
        """Opens the images of the first stage."""
        _, first = recipe.resolve_stages()[0]
        self.images, self.device = images, device
        self.features: StoredFeatures | None = None
        self.canvases = self._open_canvases(first, canvas_shapes(first, images.files))

    def store_features(self, current: Stage, model: EmbeddingModel, manifest: Manifest, run: RunFolder) -> None:
        """Computes the features of a stage that trains on stored ones, or finds them on disk."""
        if current.recipe.backbone.stored_views is not None:
            self.features = open_features(current, model, self.canvases, manifest, run, device=self.device)

    def begin_stage(self, current: Stage) -> None:
        """Opens the images of a stage, unless those of the stage before are the same."""
        if current.recipe.backbone.stored_views is not None:
            return
        if self._served_from_canvases and np.array_equal(self.canvases.shapes_N2, current.shapes_N2):
            return
        # Before the next images are read: the earlier ones may take much of the memory.
        self.features = None
        del self.canvases
        self.canvases = self._open_canvases(current.recipe, current.shapes_N2)

    def batches(self, current: Stage, first_step: int) -> Iterator[StepImages]:
        """Yields the images of each step from `first_step` to the end of the stage."""
        samples = current.samples(first_step)
        if self.features is not None:
            nothing = torch.zeros(0, dtype=torch.uint8)
            for image_B, view_B in samples:
                readable_B = self.features.readable_N[image_B]
                yield StepImages(image_B=image_B[readable_B], view_B=view_B[readable_B], canvas_BCHW=nothing)
            return
        batches = self.canvases.batches([image_B for image_B, _ in samples])
        for (image_B, view_B), batch in zip(samples, batches, strict=True):
            view_B = view_B[np.isin(image_B, batch.image_B)]  # of the images that could be decoded
            yield StepImages(image_B=batch.image_B, view_B=view_B, canvas_BCHW=batch.canvas_BCHW)

    def embed(
        self, current: Stage, networks: TeacherNetworks, images: StepImages, micro: Rows, *, step: int
    ) -> tuple[Tensor, Labels, Tensor | None]:
        """Embeddings (B, D) of a micro-batch, given by its positions among the images of a step, and their labels.

        Third, where the stage has `preserve.weight`, the features (B, F) of the starting network, else None.
        """
        preserved = current.recipe.preserve.weight > 0.0
        if self.features is not None:
            image_B, view_B = images.image_B[micro], images.view_B[micro]
            feature_BF = self.features.read(image_B, view_B).to(self.device)
            labels = Labels.of_images(self.images.class_N[image_B], self.device)
            # The backbone is frozen: its features are those of the starting network.
            return networks.model.neck(feature_BF), labels, feature_BF if preserved else None
        view_BCHW, labels = render_labelled_views(
            current, images, micro, class_N=self.images.class_N, step=step, device=self.device
        )
        # Each weight is used once in a pass: autocast would keep a copy of it in bf16 for nothing.
        with autocast(self.device, current.recipe.train.precision, cache_enabled=False):
            start_BF = None
            if preserved and networks.start is not None:
                with torch.no_grad():
                    start_BF = networks.start.features(view_BCHW)
            return networks.model(view_BCHW), labels, start_BF

    def _open_canvases(self, settings: TeacherRecipe, shapes_N2: Shapes) -> CanvasLoader:
        files, train = self.images.files, settings.train
        self._served_from_canvases = settings.backbone.stored_views is None
        if not self._served_from_canvases:
            return CanvasLoader(files=files, shapes_N2=shapes_N2, workers=train.workers, reduced=True)
        with stage(f"reading {len(files)} training images of {len(self.images.classes)} classes"):
            return open_training_canvases(train, files, shapes_N2)
