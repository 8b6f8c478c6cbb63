"""Fills a store of targets before any student is trained."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeembed.data.loader import open_canvases
from edgeembed.data.manifest import Manifest, Rows
from edgeembed.data.shapes import square_shapes
from edgeembed.errors import UserError
from edgeembed.files import check_output_folder
from edgeembed.locks import locked
from edgeembed.network.model import Network
from edgeembed.network.model_files import load_model
from edgeembed.progress import track
from edgeembed.signals import Interrupted, stop_request
from edgeembed.student.recipe import DistillRecipe
from edgeembed.student.targets.provider import (
    TargetProvider,
    choose_targets_precision,
    replay_of,
    store_folder,
    target_key,
    training_files,
    warn_if_teacher_is_slow,
)
from edgeembed.student.targets.store import TargetStore, stored_mask, warn_about_outdated_store
from edgeembed.training.device import pick_device, set_allocator
from edgeembed.training.embed import input_shapes

log = logging.getLogger(__name__)

BATCH_SIZE = 64


def build_targets(recipe: DistillRecipe, manifest: Manifest, teacher_path: Path) -> dict[str, Any]:
    """Computes the teacher's embedding of every view that the store lacks. Under torchrun, processes share the work.

    Raises UserError for a missing teacher or data and for a store that another process fills, and Interrupted after a
    stop signal; what was computed until then is kept.
    """
    if recipe.targets.store == "none":
        raise UserError("targets.store = 'none': name a folder, or leave it unset, to store targets")
    manifest.require_files()
    # torchrun sets RANK, LOCAL_RANK and WORLD_SIZE; without it there is one process.
    rank = int(os.environ.get("RANK", "0"))
    teacher, origin = load_model(teacher_path)
    device = move_to_device(teacher, recipe.train.device)
    key = target_key(recipe, manifest, teacher, origin.space_id)
    # The precision is part of the key: `auto` is resolved before the folder is known.
    precision = choose_targets_precision(recipe, key, teacher_path, device=device)
    key = key.with_precision(precision)
    folder = store_folder(recipe, key, teacher_path)
    if rank:  # the first process holds the lock for all of them
        return _fill(recipe, manifest, teacher, TargetStore(folder, key), device)
    check_output_folder(folder, option="targets.store")
    with locked(folder, instead="name another folder with targets.store"):
        warn_about_outdated_store(folder, key)
        return _fill(recipe, manifest, teacher, TargetStore(folder, key), device)


def _fill(
    recipe: DistillRecipe, manifest: Manifest, teacher: Network, store: TargetStore, device: str
) -> dict[str, Any]:
    """Computes this process's share of the targets that a store lacks."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    key, precision = store.key, store.key.augmentation["precision"]
    num_views = recipe.targets.views
    files = training_files(manifest)
    # Each of several processes would keep all canvases in memory and use only its share of them.
    canvases = open_canvases(
        files,
        shapes_N2=square_shapes(len(files), key.augmentation["canvas_px"]),
        workers=recipe.train.workers,
        cache=recipe.train.cache if world_size == 1 else "never",
        visits=len(files) * num_views,
    )
    share = np.array_split(canvases.readable(), world_size)[rank]
    # All views of some images, then of the next ones: an image is decoded once for all of its views.
    samples = [
        (missing_B, np.full_like(missing_B, view))
        for first in range(0, len(share), BATCH_SIZE)
        for view in range(num_views)
        if (missing_B := missing_images(store, share[first : first + BATCH_SIZE], view)).size
    ]
    total = sum(missing_B.size for missing_B, _ in samples)
    log.info("targets: %d images x %d views in %s, %d to compute", key.num_images, num_views, store.folder, total)
    warn_if_teacher_is_slow(teacher, num_images=total, device=device, precision=precision)
    shapes_N2 = input_shapes(teacher, files, workers=recipe.train.workers)
    provider = TargetProvider(teacher, store, shapes_N2, precision=precision, device=device)
    started, computed = time.monotonic(), 0
    with stop_request() as stop:
        for batch in track(replay_of(recipe).batches(canvases, samples), "targets", total=len(samples)):
            provider.targets(batch, np.arange(batch.image_B.size))  # which stores them
            computed += batch.image_B.size
            # Each row is valid by itself, so that a stop loses nothing.
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


def missing_images(store: TargetStore, image_B: Rows, view: int) -> Rows:
    """Returns those of some images whose target in a view is not stored."""
    return image_B[~stored_mask(store.read(image_B, view)[0])]


def move_to_device(teacher: Network, requested: str) -> str:
    """Moves a teacher to a device and returns the device's name. Under torchrun each process has its own GPU."""
    device = pick_device(requested)
    # From here on, "cuda" is the GPU of this process.
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    teacher.requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    set_allocator(sum(parameter.nbytes for parameter in teacher.parameters()))
    return device
