"""Teachers that a student can learn from: a finished teacher run, or imported embeddings of the training images.

Both give targets for the views of training, and embeddings of validation images, so that a student can be scored when
it searches its teacher's index.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeembed.arrays import FloatArray
from edgeembed.data.image_versions import images_id
from edgeembed.data.manifest import Manifest, Rows
from edgeembed.errors import UserError
from edgeembed.files import read_json
from edgeembed.model_json import TeacherOrigin
from edgeembed.network.macs import count_macs
from edgeembed.network.model import Network, num_params
from edgeembed.network.model_files import load_model
from edgeembed.run_folder import require_teacher
from edgeembed.student.recipe import DistillRecipe
from edgeembed.student.targets.imported import SOURCE, VECTORS, open_imported_store, read_rows
from edgeembed.student.targets.provider import (
    TargetProvider,
    choose_targets_precision,
    open_store,
    target_key,
    training_files,
    warn_if_teacher_is_slow,
)
from edgeembed.student.targets.store import TargetKey
from edgeembed.student.views import ViewBatch
from edgeembed.training.embed import embed_files, input_shapes

log = logging.getLogger(__name__)

TargetFunction: TypeAlias = Callable[[ViewBatch, Rows], Tensor]
"""Maps positions in a batch of views to the teacher's unit vectors, (len(positions), D) float32."""


class Teacher(Protocol):
    """What distillation needs of a teacher.

    `origin`: what model.json of a student records about it. `pca_rotated`: leading dimensions are the best short
    embedding. `size_px`: side of its input, 0 if it reads no pixels. `nbytes`: size of its weights.
    """

    path: Path
    space_id: str
    pca_rotated: bool
    dim: int
    size_px: int
    nbytes: int

    @property
    def origin(self) -> TeacherOrigin: ...

    def usable(self, image_N: Rows) -> Rows:
        """Returns those of some training images that it has, or can compute, targets of."""

    def choose_precision(self, recipe: DistillRecipe, manifest: Manifest, *, device: str, kept: str | None) -> str:
        """Resolves `targets.precision` and logs the reason; `kept` is the precision that a resumed run began with."""

    def target_function(
        self,
        recipe: DistillRecipe,
        manifest: Manifest,
        *,
        num_views: int,
        num_visits: int,
        num_images: int,
        device: str,
    ) -> TargetFunction:
        """Moves the teacher to a device and returns the function that gives its embeddings of views.

        The run still needs `num_images` of them, and visits an image at most `num_visits` times.
        """

    def embed(self, manifest: Manifest, rows: Rows, recipe: DistillRecipe, device: str) -> tuple[FloatArray, Rows]:
        """Returns embeddings of unaugmented images, (M, D) float32, and the M rows, of those given, that have one."""


def open_teacher(path: Path) -> Teacher:
    """Opens a teacher run, or a folder that `targets import` wrote. Raises UserError for anything else."""
    require_teacher(path)
    # A teacher run has its stores further down, in targets/.
    return ImportedTeacher(path) if (path / "targets.json").is_file() else RunTeacher(path)


class RunTeacher:
    """A finished run of `teacher-train`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.network: Network
        self.network, self.run_origin = load_model(path)
        self.space_id = self.run_origin.space_id
        self.pca_rotated = self.network.pca_rotated
        self.dim, self.size_px = self.network.dim, self.network.size_px
        self.nbytes = sum(parameter.nbytes for parameter in self.network.parameters())
        self._cached_key: TargetKey | None = None

    @property
    def origin(self) -> TeacherOrigin:
        return TeacherOrigin(
            path=str(self.path),
            backbone=self.network.name,
            params=num_params(self.network),
            macs=count_macs(self.network),
            data=self.run_origin.data,
        )

    def usable(self, image_N: Rows) -> Rows:
        return image_N

    def choose_precision(self, recipe: DistillRecipe, manifest: Manifest, *, device: str, kept: str | None) -> str:
        key = self._key(recipe, manifest)
        return choose_targets_precision(recipe, key, self.path, device=device, kept=kept)

    def target_function(
        self,
        recipe: DistillRecipe,
        manifest: Manifest,
        *,
        num_views: int,
        num_visits: int,
        num_images: int,
        device: str,
    ) -> TargetFunction:
        self.network.requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        store = open_store(recipe, self._key(recipe, manifest), self.path, num_views=num_views, num_visits=num_visits)
        # At most the views that the store lacks are computed.
        if store is not None:
            num_images = min(num_images, store.key.num_images * num_views - store.count(num_views))
        precision = recipe.targets.precision
        warn_if_teacher_is_slow(self.network, num_images=num_images, device=device, precision=precision)
        shapes_N2 = input_shapes(self.network, training_files(manifest), workers=recipe.train.workers)
        return TargetProvider(self.network, store, shapes_N2, precision=precision, device=device).targets

    def _key(self, recipe: DistillRecipe, manifest: Manifest) -> TargetKey | None:
        """Returns the key of the targets that a run needs, None without a store. Cached, as it looks at every image."""
        if recipe.targets.store == "none":
            return None
        if self._cached_key is None:
            self._cached_key = target_key(recipe, manifest, self.network, self.space_id)
        # The cached key may have been computed before `auto` was resolved.
        return self._cached_key.with_precision(recipe.targets.precision)

    def embed(self, manifest: Manifest, rows: Rows, recipe: DistillRecipe, device: str) -> tuple[FloatArray, Rows]:
        embedding_MD, kept = embed_files(
            self.network,
            [manifest.files[row] for row in rows],
            batch_size=recipe.eval.batch_size,
            workers=recipe.train.workers,
            device=device,
            precision=recipe.targets.precision,
        )
        return embedding_MD, rows[kept]


class ImportedTeacher:
    """Embeddings of unaugmented images that any model computed: every view of an image has the same target."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = open_imported_store(path)
        self.space_id = self.store.key.space_id
        self.origin = TeacherOrigin(path=str(path), backbone=read_json(path / SOURCE)["model"], params=None, data=None)
        # Nothing is known about the order of the dimensions.
        self.pca_rotated = False
        self.dim, self.size_px, self.nbytes = self.store.key.dim, 0, 0

    def usable(self, image_N: Rows) -> Rows:
        # View 0 stands for every view.
        return image_N[self.store.read(image_N, 0)[1]]

    def choose_precision(self, recipe: DistillRecipe, manifest: Manifest, *, device: str, kept: str | None) -> str:
        """Without effect on the targets, which are not computed here."""
        del manifest, device
        return (kept or "fp32") if recipe.targets.precision == "auto" else recipe.targets.precision

    def target_function(
        self,
        recipe: DistillRecipe,
        manifest: Manifest,
        *,
        num_views: int,
        num_visits: int,
        num_images: int,
        device: str,
    ) -> TargetFunction:
        del num_views, num_visits, num_images
        # Vectors are found by row number: the training rows and their files must be those of the import.
        if manifest.training_fingerprint != self.store.key.data:
            raise UserError(
                f"{self.path}: embeddings of training images {self.store.key.data}, "
                f"the manifest has {manifest.training_fingerprint}: "
                "run `edgeembed targets import` for this manifest"
            )
        if self.store.key.images is None:
            log.warning("%s: imported by an earlier version: not known to be of the images that are there", self.path)
        elif self.store.key.images != images_id(manifest.files, by="stat"):
            raise UserError(
                f"{self.path}: images changed since their embeddings were imported (other sizes or modification "
                "times): run `edgeembed targets import` again, with embeddings of the images that are there"
            )
        if recipe.mix.mixes:
            raise UserError(f"{self.path}: holds no embeddings of mixed images: set mix.* to 0")

        def targets(batch: ViewBatch, positions: Rows) -> Tensor:
            stored_BD, _ = self.store.read(batch.image_B[positions], 0)
            # Float16 rounds the length too.
            return F.normalize(torch.from_numpy(stored_BD).to(device).float(), dim=1)

        return targets

    def embed(self, manifest: Manifest, rows: Rows, recipe: DistillRecipe, device: str) -> tuple[FloatArray, Rows]:
        del recipe, device
        return read_rows(self.path / VECTORS, manifest, rows)
