"""Checks a store of targets against its teacher, and describes what a store holds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeembed.agreement import measure_agreement
from edgeembed.arrays import FloatArray
from edgeembed.config import AugmentSection, MixSection
from edgeembed.data.image_versions import image_key_of, images_id
from edgeembed.data.loader import open_canvases
from edgeembed.data.manifest import Manifest
from edgeembed.data.shapes import square_shapes
from edgeembed.data.views import RENDERING_VERSION
from edgeembed.errors import CheckFailed, UserError
from edgeembed.network.model import Network
from edgeembed.network.model_files import load_model
from edgeembed.progress import stage, track
from edgeembed.spread import spread_of
from edgeembed.student.targets.build import BATCH_SIZE, move_to_device
from edgeembed.student.targets.provider import TargetProvider, training_files
from edgeembed.student.targets.store import TargetStore, describe_image_change, open_existing
from edgeembed.student.views import Replay
from edgeembed.training.embed import input_shapes

log = logging.getLogger(__name__)

MIN_COSINE = 0.9999  # float16 alone leaves more than 0.999999
MAX_LENGTH_ERROR = 1e-2  # float16 alone changes a length by less than 1e-3
STATS_IMAGES = 2000  # over which `describe_targets` takes its mean cosines


def verify_targets(
    folder: Path, manifest: Manifest, teacher_path: Path, *, pairs: int | None = None, workers: int = 2, seed: int = 0
) -> dict[str, Any]:
    """Computes a random sample of a store again and compares. `pairs`: by default 1 % of the store, at least 1,000.

    Raises UserError for a store of another teacher or other data, and CheckFailed if a stored vector is not of length 1
    or a cosine is below 0.9999.
    """
    teacher, origin = load_model(teacher_path)
    store = open_existing(folder)
    require_verifiable(store, manifest, teacher_path, space_id=origin.space_id)
    # All stored vectors are read; only a sample of them is computed again.
    with stage(f"reading {store.num_views()} views"):
        stored_P2, num_wrong = stored_pairs(store)
    if num_wrong:
        raise CheckFailed(
            f"{folder}: {num_wrong} of {len(stored_P2)} stored vectors are not of length 1: delete the folder"
        )
    permutation = np.random.default_rng(seed).permutation(len(stored_P2))
    # Ascending pairs read the file of each view from front to back.
    sample = np.sort(permutation[: pairs or max(1000, len(stored_P2) // 100)])
    stored_PD, computed_PD = compute_again(store, stored_P2[sample], manifest, teacher, workers=workers)
    if len(stored_PD) == 0:
        raise CheckFailed(f"{folder}: holds no targets that could be compared: run `edgeembed targets build`")
    agreement = measure_agreement(stored_PD, computed_PD, normalise=True)
    result = {
        "store": str(folder),
        "known": len(stored_P2),
        "compared": agreement.images,
        "cosine_min": agreement.cosine_min,
        "cosine_p1": agreement.cosine_p1,
    }
    if not agreement.cosine_min >= MIN_COSINE:  # NaN fails too
        raise CheckFailed(
            f"{folder}: the teacher's embeddings now have a cosine of {agreement.cosine_min:.5f} to the stored ones, "
            f"at least {MIN_COSINE} was expected: images or software changed, delete the folder"
        )
    return result


def require_verifiable(store: TargetStore, manifest: Manifest, teacher_path: Path, *, space_id: str) -> None:
    """Raises UserError or CheckFailed if the teacher cannot compute a store's targets again: other inputs, old views.

    `space_id`: the teacher's.
    """
    folder, key = store.folder, store.key
    # Imported embeddings have no canvas: there is no network that could compute them again.
    if "canvas_px" not in key.augmentation:
        raise UserError(f"{folder}: imported embeddings: only those that a teacher run computed can be verified")
    if key.augmentation.get("rendering") != RENDERING_VERSION:
        raise UserError(
            f"{folder}: these targets are of views that an earlier version of edgeembed rendered differently: "
            "`edgeembed targets build` stores new ones"
        )
    if (key.space_id, key.data) != (space_id, manifest.training_fingerprint):
        raise UserError(
            f"{folder}: targets of space {key.space_id} on data {key.data}, "
            f"but {teacher_path} is {space_id} and the training images {manifest.training_fingerprint}"
        )
    # The rows are the same; now the image files themselves.
    manifest.require_files()
    if key.images is None:
        log.warning("%s: %s", folder, describe_image_change(None))
    elif key.images != images_id(training_files(manifest), by=image_key_of(key.images)):
        raise CheckFailed(f"{folder}: {describe_image_change(key.images)}: `edgeembed targets build` stores new ones")


def compute_again(
    store: TargetStore, sample_P2: npt.NDArray[np.int64], manifest: Manifest, teacher: Network, *, workers: int
) -> tuple[FloatArray, FloatArray]:
    """Returns the stored vectors of a sample and those that the teacher computes now, (P, D) each.

    `sample_P2`: pairs of image and view. Images that cannot be read are left out.
    """
    augmentation = store.key.augmentation
    # Views as the store records them, whatever the present recipe is.
    replay = Replay(
        augment=AugmentSection.model_validate({name: augmentation[name] for name in AugmentSection.model_fields}),
        mix=MixSection.model_validate({name: augmentation[name] for name in MixSection.model_fields}),
        seed=augmentation["seed"],
    )
    device = move_to_device(teacher, "auto")
    files = training_files(manifest)
    canvases = open_canvases(files, shapes_N2=square_shapes(len(files), augmentation["canvas_px"]), workers=workers)
    shapes_N2 = input_shapes(teacher, files, workers=workers)
    # Without a store, so that every target is computed.
    provider = TargetProvider(teacher, None, shapes_N2, precision=augmentation["precision"], device=device)
    batches = [sample_P2[first : first + BATCH_SIZE] for first in range(0, len(sample_P2), BATCH_SIZE)]
    samples = [(pair_B2[:, 0], pair_B2[:, 1]) for pair_B2 in batches]
    # Empty first parts: `concatenate` needs one even where no image can be read.
    stored = [np.zeros((0, store.key.dim), np.float32)]
    computed = [np.zeros((0, store.key.dim), np.float32)]
    for batch in track(replay.batches(canvases, samples), "computing targets again", total=len(samples)):
        computed.append(provider.targets(batch, np.arange(batch.image_B.size)).cpu().numpy())
        stored.append(store.read(batch.image_B, batch.view_B)[0].astype(np.float32))
    return np.concatenate(stored), np.concatenate(computed)


def stored_pairs(store: TargetStore) -> tuple[npt.NDArray[np.int64], int]:
    """Returns the (image, view) pairs that a store holds, (P, 2), and how many of their vectors are not of length 1."""
    pairs, num_wrong = [np.zeros((0, 2), np.int64)], 0
    for view in range(store.num_views()):
        rows_ND, stored_N = store.read(np.arange(store.key.num_images), view)
        image_P = np.flatnonzero(stored_N)
        length_P = np.linalg.norm(rows_ND[stored_N].astype(np.float32), axis=1)
        num_wrong += int((~(np.abs(length_P - 1.0) < MAX_LENGTH_ERROR)).sum())  # NaN is wrong too
        pairs.append(np.stack([image_P, np.full(image_P.size, view)], axis=1))
    return np.concatenate(pairs), num_wrong


def describe_targets(folder: Path) -> dict[str, Any]:
    """Returns what a store holds, and the mean cosines between the views of an image and between images."""
    store = open_existing(folder)
    num_views = store.num_views()
    images = np.random.default_rng(0).permutation(store.key.num_images)[:STATS_IMAGES]
    first_ND, first_N = store.read(images, 0) if num_views else (np.zeros((0, 1), np.float16), np.zeros(0, bool))
    between_views = []
    for view in range(1, num_views):
        other_ND, other_N = store.read(images, view)
        both = first_N & other_N
        # Stored vectors have unit length, so that the sum of products is the cosine.
        between_views.append((first_ND[both].astype(np.float32) * other_ND[both].astype(np.float32)).sum(axis=1))
    # None for fewer than two stored targets.
    spread = spread_of(first_ND[first_N].astype(np.float32))
    return {
        "store": str(folder),
        "space_id": store.key.space_id,
        "data": store.key.data,
        "images": store.key.num_images,
        "dim": store.key.dim,
        "views": num_views,
        "known": store.count(num_views),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "cosine_between_views": float(np.concatenate(between_views).mean()) if between_views else None,
        "cosine_between_images": spread and spread.mean_cosine,
        "effective_dim": spread and spread.effective_dim,
        "augmentation": store.key.augmentation,
    }
