"""Filling a store of targets ahead of any student, and proving that one still says what the teacher says."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgeembed.config import AugmentSection, MixSection
from edgeembed.data.image_versions import images_id, kind_of
from edgeembed.data.loader import open_canvases
from edgeembed.data.manifest import Manifest, Rows
from edgeembed.data.shapes import square_shapes
from edgeembed.data.views import RENDERING_VERSION
from edgeembed.errors import CheckFailed, UserError
from edgeembed.files import check_output_folder
from edgeembed.locks import locked
from edgeembed.network.model import Network
from edgeembed.network.model_files import load_model
from edgeembed.progress import stage, track
from edgeembed.signals import Interrupted, stop_request
from edgeembed.spread import spread_of
from edgeembed.student.recipe import DistillRecipe
from edgeembed.student.targets.provider import (
    Answers,
    choose_targets_precision,
    replay_of,
    store_folder,
    target_key,
    warn_if_teacher_is_slow,
)
from edgeembed.student.targets.store import (
    TargetStore,
    are_known,
    changed_images,
    open_existing,
    warn_of_other_versions,
)
from edgeembed.student.views import Replay
from edgeembed.training.device import pick_device, set_allocator
from edgeembed.training.embed import input_shapes

log = logging.getLogger(__name__)

BATCH_SIZE = 64
SAME_COSINE = 0.9999  # float16 alone leaves more than 0.999999


def build_targets(recipe: DistillRecipe, manifest: Manifest, teacher_path: Path) -> dict[str, Any]:
    """Asks the teacher for every view that the store lacks; started by torchrun, each process takes a part.

    Raises UserError for a missing teacher or data and for a store that another process fills, and Interrupted after a
    stop signal; what was answered is kept.
    """
    if recipe.targets.store == "none":
        raise UserError("targets.store = 'none': name a folder, or leave it unset, to store targets")
    rank = int(os.environ.get("RANK", "0"))
    teacher, facts = load_model(teacher_path)
    device = bring_to_device(teacher, recipe.train.device)
    key = target_key(recipe, manifest, teacher, facts["space_id"])
    precision = choose_targets_precision(recipe, key, teacher_path, device=device)
    key = key.at(precision)
    folder = store_folder(recipe, key, teacher_path)
    if rank:  # the first process holds the folder for all of them
        return _fill(recipe, manifest, teacher, TargetStore(folder, key), device)
    check_output_folder(folder, option="targets.store")
    with locked(folder, instead="name another folder with targets.store"):
        warn_of_other_versions(folder, key)
        return _fill(recipe, manifest, teacher, TargetStore(folder, key), device)


def _fill(
    recipe: DistillRecipe, manifest: Manifest, teacher: Network, store: TargetStore, device: str
) -> dict[str, Any]:
    """Computes this process's part of what a store lacks."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    key, precision = store.key, store.key.augmentation["precision"]
    num_views = recipe.targets.views
    canvases = open_canvases(
        files := train_files(manifest),
        shapes_N2=square_shapes(len(files), key.augmentation["canvas_px"]),
        workers=recipe.train.workers,
        cache=recipe.train.cache if world_size == 1 else "never",
        visits=len(files) * num_views,
    )
    mine = np.array_split(canvases.readable(), world_size)[rank]
    samples = [
        (missing_B, np.full_like(missing_B, view))
        for first in range(0, len(mine), BATCH_SIZE)
        for view in range(num_views)
        if (missing_B := lacking(store, mine[first : first + BATCH_SIZE], view)).size
    ]
    total = sum(missing_B.size for missing_B, _ in samples)
    log.info("targets: %d images x %d views in %s, %d to compute", key.num_images, num_views, store.folder, total)
    warn_if_teacher_is_slow(teacher, num_images=total, device=device, precision=precision)
    shapes_N2 = input_shapes(teacher, files, workers=recipe.train.workers)
    answers = Answers(teacher, store, shapes_N2, precision=precision, device=device)
    started, computed = time.monotonic(), 0
    with stop_request() as stop:
        for batch in track(replay_of(recipe).batches(canvases, samples), "targets", total=len(samples)):
            answers.of(batch, np.arange(batch.image_B.size))
            computed += batch.image_B.size
            if stop.signum is not None:
                store.flush()
                raise Interrupted(stop.signum, f"{computed} of {total} targets added to {store.folder}, run it again")
    store.flush()
    return {
        "store": str(store.folder),
        "images": key.num_images,
        "views": num_views,
        "computed": computed,
        "known": store.count(num_views),
        "unreadable": len(canvases.unreadable),
        "bytes": num_views * key.num_images * key.dim * 2,
        "seconds": round(time.monotonic() - started, 1),
    }


def verify_targets(
    folder: Path, manifest: Manifest, teacher_path: Path, *, pairs: int | None = None, workers: int = 2, seed: int = 0
) -> dict[str, Any]:
    """Asks the teacher again for a drawn sample, 1 % of what is known and at least 1,000, and compares.

    Raises UserError for a store of another teacher or other data, and CheckFailed where a stored vector is not of
    length 1 or a cosine is below 0.9999.
    """
    teacher, facts = load_model(teacher_path)
    store = open_existing(folder)
    if "canvas_px" not in store.key.augmentation:
        raise UserError(f"{folder}: imported embeddings: only those that a teacher run computed can be verified")
    if store.key.augmentation.get("rendering") != RENDERING_VERSION:
        raise UserError(
            f"{folder}: these targets are of views that an earlier version of edgeembed rendered differently: "
            "`edgeembed targets build` stores new ones"
        )
    if (store.key.space_id, store.key.data) != (facts["space_id"], manifest.training_fingerprint):
        raise UserError(
            f"{folder}: targets of space {store.key.space_id} on data {store.key.data}, "
            f"but {teacher_path} is {facts['space_id']} and the training images {manifest.training_fingerprint}"
        )
    if store.key.images is None:
        log.warning("%s: %s", folder, changed_images(None))
    elif store.key.images != images_id(train_files(manifest), by=kind_of(store.key.images)):
        raise CheckFailed(f"{folder}: {changed_images(store.key.images)}: `edgeembed targets build` stores new ones")
    with stage(f"reading {store.num_views()} views"):
        known, wrong = survey(store)
    if wrong:
        raise CheckFailed(f"{folder}: {wrong} of {len(known)} stored vectors are not of length 1: delete the folder")
    draw = np.random.default_rng(seed)
    sample = draw.permutation(len(known))[: pairs or max(1000, len(known) // 100)]
    chosen = known[np.sort(sample)]
    augmentation = store.key.augmentation
    replay = Replay(
        augment=AugmentSection.model_validate({name: augmentation[name] for name in AugmentSection.model_fields}),
        mix=MixSection.model_validate({name: augmentation[name] for name in MixSection.model_fields}),
        seed=augmentation["seed"],
    )
    device = bring_to_device(teacher, "auto")
    files = train_files(manifest)
    canvases = open_canvases(files, shapes_N2=square_shapes(len(files), augmentation["canvas_px"]), workers=workers)
    shapes_N2 = input_shapes(teacher, files, workers=workers)
    live = Answers(teacher, None, shapes_N2, precision=augmentation["precision"], device=device)
    cosines = []
    samples = [
        (chosen[first : first + BATCH_SIZE, 0], chosen[first : first + BATCH_SIZE, 1])
        for first in range(0, len(chosen), BATCH_SIZE)
    ]
    for batch in track(replay.batches(canvases, samples), "computing targets again", total=len(samples)):
        answer_BD = live.of(batch, np.arange(batch.image_B.size)).cpu().numpy()
        stored_BD = store.read(batch.image_B, batch.view_B)[0].astype(np.float32)
        norm_B = np.linalg.norm(stored_BD, axis=1) * np.linalg.norm(answer_BD, axis=1)
        cosines.append((stored_BD * answer_BD).sum(axis=1) / norm_B)
    cosine_P = np.concatenate(cosines) if cosines else np.zeros(0, np.float32)
    if cosine_P.size == 0:
        raise CheckFailed(f"{folder}: holds no targets that could be compared: run `edgeembed targets build`")
    result = {
        "store": str(folder),
        "known": len(known),
        "compared": int(cosine_P.size),
        "cosine_min": float(cosine_P.min()),
        "cosine_p1": float(np.percentile(cosine_P, 1)),
    }
    if not cosine_P.min() >= SAME_COSINE:
        raise CheckFailed(
            f"{folder}: the teacher now answers with a cosine of {cosine_P.min():.5f} to what is stored, "
            f"at least {SAME_COSINE} was expected: images or software changed, delete the folder"
        )
    return result


def describe_targets(folder: Path) -> dict[str, Any]:
    """What a store holds, and how its vectors lie: cosines within an image's views and between images."""
    store = open_existing(folder)
    num_views = store.num_views()
    images = np.random.default_rng(0).permutation(store.key.num_images)[:2000]
    first_ND, known_N = store.read(images, 0) if num_views else (np.zeros((0, 1), np.float16), np.zeros(0, bool))
    sample_ND = first_ND[known_N].astype(np.float32)
    within = []
    for view in range(1, num_views):
        other_ND, other_N = store.read(images, view)
        both = known_N & other_N
        within.append((first_ND[both].astype(np.float32) * other_ND[both].astype(np.float32)).sum(axis=1))
    spread = spread_of(sample_ND)
    return {
        "store": str(folder),
        "space_id": store.key.space_id,
        "data": store.key.data,
        "images": store.key.num_images,
        "dim": store.key.dim,
        "views": num_views,
        "known": store.count(num_views),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "cosine_between_views": float(np.concatenate(within).mean()) if within else None,
        "cosine_between_images": spread and spread.mean_cosine,
        "effective_dim": spread and spread.effective_dim,
        "augmentation": store.key.augmentation,
    }


def survey(store: TargetStore) -> tuple[npt.NDArray[np.int64], int]:
    """The (image, view) pairs that are known, (P, 2), and how many of them are not of length 1."""
    pairs, wrong = [], 0
    for view in range(store.num_views()):
        rows_ND, known_N = store.read(np.arange(store.key.num_images), view)
        image_P = np.flatnonzero(known_N)
        length_P = np.linalg.norm(rows_ND[known_N].astype(np.float32), axis=1)
        wrong += int((~(np.abs(length_P - 1.0) < 1e-2)).sum())
        pairs.append(np.stack([image_P, np.full(image_P.size, view)], axis=1))
    return (np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)), wrong


def lacking(store: TargetStore, image_B: Rows, view: int) -> Rows:
    return image_B[~are_known(store.read(image_B, view)[0])]


def train_files(manifest: Manifest) -> Sequence[str]:
    manifest.require_files()
    return [manifest.files[row] for row in manifest.training_rows()]


def bring_to_device(teacher: Network, wanted: str) -> str:
    """Moves a teacher and returns where to; under torchrun each process takes a GPU of its own."""
    device = pick_device(wanted)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    teacher.requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    set_allocator(sum(parameter.nbytes for parameter in teacher.parameters()))
    return device
