"""Gives a distillation run its targets: the teacher's embeddings of views, from a store or computed now."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeembed.data.image_versions import images_id
from edgeembed.data.manifest import Manifest, Rows
from edgeembed.data.shapes import Shapes
from edgeembed.data.views import RENDERING_VERSION
from edgeembed.files import check_output_folder, read_json
from edgeembed.model_json import to_json
from edgeembed.network.model import Network
from edgeembed.student.recipe import DistillRecipe
from edgeembed.student.targets.store import TargetKey, TargetStore, warn_about_outdated_store
from edgeembed.student.views import Replay, ViewBatch
from edgeembed.training.forecast import warn_if_too_slow
from edgeembed.training.precision import DTYPES, autocast, choose_precision, native_precision

log = logging.getLogger(__name__)


class TargetProvider:
    """Returns a teacher's embeddings of views. Those that the store lacks are computed, and added to it."""

    def __init__(
        self, teacher: Network, store: TargetStore | None, shapes_N2: Shapes, *, precision: str, device: str
    ) -> None:
        """`shapes_N2`: (height, width) in pixels of the teacher's input for each training image."""
        self.teacher, self.store, self.shapes_N2 = teacher, store, shapes_N2
        self.precision, self.device = precision, device

    def targets(self, batch: ViewBatch, positions: Rows) -> Tensor:
        """Returns unit vectors of the views at some positions of a batch, (len(positions), D) float32."""
        if self.store is None:
            return self.compute(batch, positions)
        image_B = batch.image_B[positions]
        view_B = batch.view_B[positions]
        target_BD, stored_B = self.store.read(image_B, view_B)
        if not stored_B.all():
            # Rounded to float16 at once, so that a target is the same at its first use and at later ones.
            target_BD[~stored_B] = self.compute(batch, positions[~stored_B]).cpu().numpy()
            self.store.write(image_B[~stored_B], view_B[~stored_B], target_BD[~stored_B])
        # Float16 rounds the length too.
        return F.normalize(torch.from_numpy(target_BD).to(self.device).float(), dim=1)

    def compute(self, batch: ViewBatch, positions: Rows) -> Tensor:
        """Runs the teacher on the views at some positions of a batch; (len(positions), D) float32."""
        # The teacher's input shape for each image.
        shape_B2 = self.shapes_N2[batch.image_B[positions]]
        target_BD = torch.zeros(len(positions), self.teacher.dim, device=self.device)
        # All images have one shape, unless the teacher keeps proportions.
        for height, width in np.unique(shape_B2, axis=0).tolist():
            of_shape = np.flatnonzero((shape_B2 == (height, width)).all(axis=1))
            image_BCHW = batch.render(positions[of_shape], (height, width), self.device)
            with torch.no_grad(), autocast(self.device, self.precision):
                target_BD[of_shape] = self.teacher(image_BCHW).float()
        return target_BD


def training_files(manifest: Manifest) -> Sequence[str]:
    """Paths of the training images; targets are numbered in this order."""
    return [manifest.files[row] for row in manifest.training_rows()]


def training_canvas_px(recipe: DistillRecipe, teacher_px: int) -> int:
    """Returns the side of the squares that images are decoded to, large enough for the views of both networks."""
    return round(max(recipe.image.view_px(), teacher_px) * recipe.image.canvas_factor)


def replay_of(recipe: DistillRecipe) -> Replay:
    """Returns what draws the views of a recipe, which have a seed of their own."""
    return Replay(augment=recipe.augment, mix=recipe.mix, seed=recipe.targets.seed)


def target_key(recipe: DistillRecipe, manifest: Manifest, teacher: Network, space_id: str) -> TargetKey:
    """Returns the key of the targets that a recipe needs. Students of one input size share them."""
    inference = teacher.describe().inference
    # Without student, loss and optimiser: targets do not depend on them.
    return TargetKey(
        space_id=space_id,
        data=manifest.training_fingerprint,
        images=images_id(training_files(manifest), by=recipe.targets.key),
        num_images=int(manifest.training_rows().size),
        dim=teacher.dim,
        augmentation={
            "rendering": RENDERING_VERSION,
            "seed": recipe.targets.seed,
            "canvas_px": training_canvas_px(recipe, teacher.size_px),
            "teacher_px": teacher.size_px,
            "precision": recipe.targets.precision,
            "inference": {} if inference is None else to_json(inference),
            **recipe.augment.model_dump(mode="json"),
            **recipe.mix.model_dump(mode="json"),
        },
    )


def choose_targets_precision(
    recipe: DistillRecipe, key: TargetKey | None, teacher_path: Path, *, device: str, kept: str | None = None
) -> str:
    """Returns the precision in which the teacher computes.

    For `auto`: that of the run which is resumed (`kept`), else that of a store which holds these targets already, else
    the one that the device computes natively.
    """
    requested, reason = recipe.targets.precision, "as the run began"
    if requested == "auto" and kept is None and key is not None:
        stored = stored_precisions(recipe, key, teacher_path)
        native, _ = native_precision(device)
        # Targets that are stored in another format need not be computed again.
        if stored and native not in stored:
            kept, folder = next(iter(stored.items()))
            reason = f"as the targets in {folder}"
    return choose_precision(requested, device, key="targets.precision", kept=kept, reason_kept=reason)


def stored_precisions(recipe: DistillRecipe, key: TargetKey, teacher_path: Path) -> dict[str, Path]:
    """Returns the precisions in which a store holds a recipe's targets, each with the store's folder."""
    stored: dict[str, Path] = {}
    for precision in DTYPES:
        # With `targets.store` set, all formats have one folder: its key tells which of them it holds.
        folder = store_folder(recipe, key.with_precision(precision), teacher_path)
        described = folder / "targets.json"
        if described.is_file():
            augmentation = read_json(described).get("augmentation")
            if isinstance(augmentation, dict) and augmentation.get("precision") == precision:
                stored[precision] = folder
    return stored


def with_targets_precision(recipe: DistillRecipe, precision: str) -> DistillRecipe:
    """Returns the recipe with another `targets.precision`."""
    return recipe.model_copy(update={"targets": recipe.targets.model_copy(update={"precision": precision})})


def warn_if_teacher_is_slow(teacher: Network, *, num_images: int, device: str, precision: str) -> None:
    """Warns, before the first view, if computing a large teacher's embeddings on this CPU would take days."""
    warn_if_too_slow(
        teacher,
        name=f"the teacher {teacher.name}",
        size_px=teacher.size_px,
        num_images=num_images,
        device=device,
        precision=precision,
        instead="let `edgeembed targets build` store its embeddings on a machine with an NVIDIA GPU, and leave "
        "targets.store unset",
        backward=False,
    )


def open_store(
    recipe: DistillRecipe, key: TargetKey | None, teacher_path: Path, *, num_views: int, num_visits: int
) -> TargetStore | None:
    """Returns the store that a run reads and fills, or None if its targets are not stored; logs the choice.

    `num_visits`: how often the whole run visits the image that it visits most.
    """
    section = recipe.targets
    if key is None:
        log.info("targets: the teacher embeds the views of every step, as targets.store = none says")
        return None
    folder = store_folder(recipe, key, teacher_path)
    # No view would be read twice in this run.
    if section.store == "auto" and not folder.is_dir() and num_views >= num_visits:
        log.info(
            "targets: the teacher embeds each view, as no view recurs within %d epochs: not stored", recipe.train.epochs
        )
        return None
    warn_about_outdated_store(folder, key)
    store = TargetStore(folder, key)
    total = key.num_images * num_views
    num_stored = store.count(num_views)
    if num_stored < total:
        # A complete store may be on a read-only disk.
        check_output_folder(folder, option="targets.store")
    log.info(
        "targets: %d images x %d views, each used up to %.3g times; %d of %d stored in %s (%.3g MB), the teacher "
        "computes the others",
        *(key.num_images, num_views, num_visits / num_views, num_stored, total, folder, total * key.dim * 2 / 1e6),
    )
    return store


def store_folder(recipe: DistillRecipe, key: TargetKey, teacher_path: Path) -> Path:
    """Returns the folder of a recipe's targets: `targets.store`, or the folder of this key below the teacher's run."""
    return teacher_path / "targets" / key.name if recipe.targets.store == "auto" else Path(recipe.targets.store)
