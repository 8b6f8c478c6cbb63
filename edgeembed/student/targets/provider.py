"""The teacher's side of a distillation run: what it answers to views, from its store or live."""

from __future__ import annotations

import logging
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
from edgeembed.network.model import Network
from edgeembed.student.recipe import DistillRecipe
from edgeembed.student.targets.store import TargetKey, TargetStore, warn_of_other_versions
from edgeembed.student.views import Replay, ViewBatch
from edgeembed.training.forecast import warn_if_too_slow
from edgeembed.training.precision import DTYPES, autocast, choose_precision, native_precision

log = logging.getLogger(__name__)


class Answers:
    """Unit vectors of a teacher for views; asks it only for what its store, if any, lacks."""

    def __init__(
        self, teacher: Network, store: TargetStore | None, shapes_N2: Shapes, *, precision: str, device: str
    ) -> None:
        """`shapes_N2`: (height, width) in pixels of the teacher's input for each training image."""
        self.teacher, self.store, self.shapes_N2 = teacher, store, shapes_N2
        self.precision, self.device = precision, device

    def of(self, batch: ViewBatch, at: Rows) -> Tensor:
        """The answers to the images of a batch at some places, (len(at), D) float32."""
        if self.store is None:
            return self.ask(batch, at)
        image_B = batch.image_B[at]
        view_B = batch.view_B[at]
        answer_BD, known_B = self.store.read(image_B, view_B)
        if not known_B.all():
            answer_BD[~known_B] = self.ask(batch, at[~known_B]).cpu().numpy()
            self.store.write(image_B[~known_B], view_B[~known_B], answer_BD[~known_B])
        return F.normalize(torch.from_numpy(answer_BD).to(self.device).float(), dim=1)

    def ask(self, batch: ViewBatch, at: Rows) -> Tensor:
        """The live teacher's answers, (len(at), D) float32."""
        shape_B2 = self.shapes_N2[batch.image_B[at]]
        answer_BD = torch.zeros(len(at), self.teacher.dim, device=self.device)
        for height, width in np.unique(shape_B2, axis=0).tolist():  # one shape, unless the teacher keeps proportions
            of_shape = np.flatnonzero((shape_B2 == (height, width)).all(axis=1))
            image_BCHW = batch.render(at[of_shape], (height, width), self.device)
            with torch.no_grad(), autocast(self.device, self.precision):
                answer_BD[of_shape] = self.teacher(image_BCHW).float()
        return answer_BD


def training_canvas_px(recipe: DistillRecipe, teacher_px: int) -> int:
    """The side that images are decoded to: enough for the views of student and teacher alike."""
    return round(max(recipe.image.view_px(), teacher_px) * recipe.image.canvas_factor)


def replay_of(recipe: DistillRecipe) -> Replay:
    return Replay(augment=recipe.augment, mix=recipe.mix, seed=recipe.targets.seed)


def target_key(recipe: DistillRecipe, manifest: Manifest, teacher: Network, space_id: str) -> TargetKey:
    """Names the targets that a recipe needs of a teacher; students of one size share them."""
    return TargetKey(
        space_id=space_id,
        data=manifest.training_fingerprint,
        images=images_id([manifest.files[row] for row in manifest.training_rows()], by=recipe.targets.key),
        num_images=int(manifest.training_rows().size),
        dim=teacher.dim,
        augmentation={
            "rendering": RENDERING_VERSION,
            "seed": recipe.targets.seed,
            "canvas_px": training_canvas_px(recipe, teacher.size_px),
            "teacher_px": teacher.size_px,
            "precision": recipe.targets.precision,
            "inference": teacher.describe().get("inference", {}),
            **recipe.augment.model_dump(mode="json"),
            **recipe.mix.model_dump(mode="json"),
        },
    )


def choose_targets_precision(
    recipe: DistillRecipe, key: TargetKey | None, teacher_path: Path, *, device: str, kept: str | None = None
) -> str:
    """The precision that the teacher computes in. Where the recipe leaves it open: the one that a resumed run began
    with (`kept`), that of a store of these targets, or the one that the device computes natively, in this order.
    """
    wanted, reason = recipe.targets.precision, "as the run began"
    if wanted == "auto" and kept is None and key is not None:
        stored = stored_precisions(recipe, key, teacher_path)
        native, _ = native_precision(device)
        if stored and native not in stored:
            kept, folder = next(iter(stored.items()))
            reason = f"as the targets in {folder}"
    return choose_precision(wanted, device, key="targets.precision", kept=kept, reason_kept=reason)


def stored_precisions(recipe: DistillRecipe, key: TargetKey, teacher_path: Path) -> dict[str, Path]:
    """The precisions in which there is a store of a recipe's targets, and its folder."""
    stored: dict[str, Path] = {}
    for precision in DTYPES:
        folder = store_folder(recipe, key.at(precision), teacher_path)
        described = folder / "targets.json"
        if described.is_file():
            augmentation = read_json(described).get("augmentation")
            if isinstance(augmentation, dict) and augmentation.get("precision") == precision:
                stored[precision] = folder
    return stored


def with_targets_precision(recipe: DistillRecipe, precision: str) -> DistillRecipe:
    return recipe.model_copy(update={"targets": recipe.targets.model_copy(update={"precision": precision})})


def warn_if_teacher_is_slow(teacher: Network, *, num_images: int, device: str, precision: str) -> None:
    """Warns before the first view where computing a large teacher's embeddings on a CPU would take days."""
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
    """The store that a run reads and fills, None for a live teacher; logs which, and why.

    `num_visits`: how often the whole run visits the image that it visits most.
    """
    section = recipe.targets
    if key is None:
        log.info("targets: the teacher embeds the views of every step, as targets.store = none says")
        return None
    folder = store_folder(recipe, key, teacher_path)
    if section.store == "auto" and not folder.is_dir() and num_views >= num_visits:
        log.info(
            "targets: the teacher embeds each view, as no view recurs within %d epochs: not stored", recipe.train.epochs
        )
        return None
    warn_of_other_versions(folder, key)
    store = TargetStore(folder, key)
    total = key.num_images * num_views
    known = store.count(num_views)
    if known < total:
        check_output_folder(folder, option="targets.store")
    log.info(
        "targets: %d images x %d views, each used up to %.3g times; %d of %d known in %s (%.3g MB), the teacher adds "
        "others",
        *(key.num_images, num_views, num_visits / num_views, known, total, folder, total * key.dim * 2 / 1e6),
    )
    return store


def store_folder(recipe: DistillRecipe, key: TargetKey, teacher_path: Path) -> Path:
    return teacher_path / "targets" / key.name if recipe.targets.store == "auto" else Path(recipe.targets.store)
