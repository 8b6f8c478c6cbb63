"""Teachers that a student can learn from: a run of ours, or anybody's embeddings of the training images.

Both answer to views, and both can give their embeddings of validation images, for the score of a student that searches
its teacher's index.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeembed.arrays import FloatArray
from edgeembed.data.image_versions import images_id
from edgeembed.data.manifest import Manifest, Rows
from edgeembed.errors import UserError
from edgeembed.files import read_json
from edgeembed.network.model import Network
from edgeembed.network.model_files import load_model
from edgeembed.run_folder import require_teacher
from edgeembed.student.recipe import DistillRecipe
from edgeembed.student.targets.imported import SOURCE, VECTORS, open_own, rows_of
from edgeembed.student.targets.provider import (
    Answers,
    choose_targets_precision,
    open_store,
    target_key,
    warn_if_teacher_is_slow,
)
from edgeembed.student.targets.store import TargetKey
from edgeembed.student.views import ViewBatch
from edgeembed.training.embed import embed_files, input_shapes

log = logging.getLogger(__name__)

Answer: TypeAlias = Callable[[ViewBatch, Rows], Tensor]  # places in a batch to unit vectors (len(at), D), float32


class Teacher(Protocol):
    """What distillation needs of a teacher. `facts` is as in model.json; `size_px` is 0 where it sees no pixels."""

    path: Path
    facts: dict[str, Any]
    dim: int
    size_px: int
    nbytes: int

    def usable(self, image_N: Rows) -> Rows:
        """Those of some training images that it can answer for."""

    def choose_precision(self, recipe: DistillRecipe, manifest: Manifest, *, device: str, kept: str | None) -> str:
        """Resolves `targets.precision` and logs the reason; `kept` is the precision that a resumed run began with."""

    def answers(
        self,
        recipe: DistillRecipe,
        manifest: Manifest,
        *,
        num_views: int,
        num_visits: int,
        num_images: int,
        device: str,
    ) -> Answer:
        """Moves the teacher to a device and returns the function that gives its embeddings of views.

        The run still needs `num_images` of them, and visits an image at most `num_visits` times.
        """

    def embed(self, manifest: Manifest, rows: Rows, recipe: DistillRecipe, device: str) -> tuple[FloatArray, Rows]:
        """Its embeddings of rows of a manifest, unaugmented: (M, D) float32, and the M rows that it has one for."""


def open_teacher(path: Path) -> Teacher:
    """A teacher run, or a store that `targets import` made. Raises UserError for anything else."""
    require_teacher(path)
    return OwnTeacher(path) if (path / "targets.json").is_file() else RunTeacher(path)


class RunTeacher:
    """A finished run of `teacher-train`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.network: Network
        self.network, self.facts = load_model(path)
        self.dim, self.size_px = self.network.dim, self.network.size_px
        self.nbytes = sum(parameter.nbytes for parameter in self.network.parameters())
        self._known_key: TargetKey | None = None

    def usable(self, image_N: Rows) -> Rows:
        return image_N

    def choose_precision(self, recipe: DistillRecipe, manifest: Manifest, *, device: str, kept: str | None) -> str:
        key = self._key(recipe, manifest)
        return choose_targets_precision(recipe, key, self.path, device=device, kept=kept)

    def answers(
        self,
        recipe: DistillRecipe,
        manifest: Manifest,
        *,
        num_views: int,
        num_visits: int,
        num_images: int,
        device: str,
    ) -> Answer:
        self.network.requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        store = open_store(recipe, self._key(recipe, manifest), self.path, num_views=num_views, num_visits=num_visits)
        if store is not None:
            num_images = min(num_images, store.key.num_images * num_views - store.count(num_views))
        precision = recipe.targets.precision
        warn_if_teacher_is_slow(self.network, num_images=num_images, device=device, precision=precision)
        files = [manifest.files[row] for row in manifest.training_rows()]
        shapes_N2 = input_shapes(self.network, files, workers=recipe.train.workers)
        return Answers(self.network, store, shapes_N2, precision=recipe.targets.precision, device=device).of

    def _key(self, recipe: DistillRecipe, manifest: Manifest) -> TargetKey | None:
        """The key of the targets that a run needs, for which the images are looked at once; None without a store."""
        if recipe.targets.store == "none":
            return None
        if self._known_key is None:
            self._known_key = target_key(recipe, manifest, self.network, self.facts["space_id"])
        return self._known_key.at(recipe.targets.precision)

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


class OwnTeacher:
    """Embeddings of unaugmented images by any model: every view of an image has the same target."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = open_own(path)
        source = read_json(path / SOURCE)
        self.dim, self.size_px, self.nbytes = self.store.key.dim, 0, 0
        self.facts = {"space_id": self.store.key.space_id, "architecture": {"backbone": source["model"]}}

    def usable(self, image_N: Rows) -> Rows:
        return image_N[self.store.read(image_N, 0)[1]]

    def choose_precision(self, recipe: DistillRecipe, manifest: Manifest, *, device: str, kept: str | None) -> str:
        """Nothing is computed: the embeddings are there."""
        del manifest, device
        return (kept or "fp32") if recipe.targets.precision == "auto" else recipe.targets.precision

    def answers(
        self,
        recipe: DistillRecipe,
        manifest: Manifest,
        *,
        num_views: int,
        num_visits: int,
        num_images: int,
        device: str,
    ) -> Answer:
        del num_views, num_visits, num_images
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
            raise UserError(f"{self.path}: embeddings say nothing of mixed images: set mix.* to 0")

        def answer(batch: ViewBatch, at: Rows) -> Tensor:
            stored_BD, _ = self.store.read(batch.image_B[at], 0)
            return F.normalize(torch.from_numpy(stored_BD).to(device).float(), dim=1)

        return answer

    def embed(self, manifest: Manifest, rows: Rows, recipe: DistillRecipe, device: str) -> tuple[FloatArray, Rows]:
        del recipe, device
        return rows_of(self.path / VECTORS, manifest, rows)
