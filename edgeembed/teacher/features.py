"""Stored features of a frozen backbone: computed once for some views of each training image, then read at every step.

A folder `features/<key>` of the run holds them as one float16 array, which is memory-mapped. The key is a hash of
everything that they depend on, so that another run beside this one, with other margins say, uses them again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from edgeembed.arrays import BoolArray, HalfArray
from edgeembed.config import AugmentSection
from edgeembed.data.augment import ViewParameters, draw_views
from edgeembed.data.image_versions import images_id
from edgeembed.data.loader import CanvasLoader
from edgeembed.data.manifest import Manifest, Rows
from edgeembed.data.views import RENDERING_VERSION, render_views
from edgeembed.errors import CheckFailed, UserError
from edgeembed.files import read_json, whole_file, whole_folder, write_json
from edgeembed.network.eval_mode import eval_mode
from edgeembed.network.model import EmbeddingModel
from edgeembed.network.space_id import add_tensors
from edgeembed.progress import stage, track
from edgeembed.run_folder import RunFolder
from edgeembed.teacher.stages import Stage
from edgeembed.training.embed import batches_of_one_shape
from edgeembed.training.forecast import warn_if_too_slow
from edgeembed.training.precision import autocast

log = logging.getLogger(__name__)

ARRAY, DESCRIPTION = "features.npy", "features.json"  # the second is written last
NOT_AUGMENTED = AugmentSection(flip_probability=0.0)


@dataclass(frozen=True, kw_only=True)
class StoredFeatures:
    """Features of N images in V views each, (N, V, F) float16, memory-mapped, and which images could be read, (N,)."""

    feature_NVF: HalfArray
    readable_N: BoolArray

    def read(self, image_B: Rows, view_B: Rows) -> torch.Tensor:
        """Features (B, F) of images in views of any number: the stored views recur."""
        return torch.from_numpy(self.feature_NVF[image_B, view_B % self.feature_NVF.shape[1]])


def open_features(
    current: Stage, model: EmbeddingModel, canvases: CanvasLoader, manifest: Manifest, run: RunFolder, *, device: str
) -> StoredFeatures:
    """The features of a stage: from this run or one beside it, else computed now and stored in this run.

    Images that cannot be read are added to `canvases.unreadable`. Raises UserError where fewer than two can be read.
    """
    image, num_images = current.recipe.image, len(canvases.files)
    model.set_input_size(image.size_px, image.patch_stride)
    model.require_view_sizes(image.view_px())
    key = features_key(current, model, canvases, manifest)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    own = run.path / "features" / name
    for folder in (own, *sorted(run.path.absolute().parent.glob(f"*/features/{name}"))):
        if (folder / DESCRIPTION).is_file():
            log.info("features of %d images in %d views: from %s", num_images, key["views"], folder)
            break
    else:
        folder = own
        with stage(f"computing features of {num_images} images in {key['views']} views"):
            compute_features(current, model, canvases, folder, key, device=device)
    features = read_features(folder, (num_images, key["views"], model.neck.projection.in_features))
    unreadable = np.flatnonzero(~features.readable_N)
    if unreadable.size > len(canvases.unreadable):
        log.warning("%d of %d images could not be read when %s was written", unreadable.size, num_images, folder)
        canvases.unreadable.update(unreadable.tolist())
    if num_images - unreadable.size < 2:
        raise UserError(
            f"{num_images - unreadable.size} of {num_images} training images can be read, expected 2 or more"
        )
    return features


def features_key(current: Stage, model: EmbeddingModel, canvases: CanvasLoader, manifest: Manifest) -> dict[str, Any]:
    """Everything that stored features depend on."""
    recipe = current.recipe
    weights = hashlib.sha256()
    add_tensors(weights, model.backbone)
    return {
        "backbone": {
            "name": model.name,
            "pooling": model.pooling,
            "output_stride": model.output_stride,
            "patch_stride": model.patch_stride,
            "weights": weights.hexdigest()[:16],
        },
        "data": manifest.training_fingerprint,
        "images": images_id(canvases.files, by="stat"),
        "views": recipe.backbone.stored_views,
        "rendering": RENDERING_VERSION,
        "seed": recipe.train.seed,
        "canvases": hashlib.sha256(canvases.shapes_N2.tobytes()).hexdigest()[:16],
        "view_px": recipe.image.view_px(),
        "input_px": model.size_px,
        "keep_aspect": recipe.image.keep_aspect,
        "precision": recipe.train.precision,
        "augment": recipe.augment.model_dump(mode="json"),
    }


def compute_features(
    current: Stage, model: EmbeddingModel, canvases: CanvasLoader, folder: Path, key: dict[str, Any], *, device: str
) -> None:
    """Computes the features of all views and writes the folder, whole or not at all."""
    recipe, num_images, num_views = current.recipe, len(canvases.files), int(key["views"])
    precision = recipe.train.precision
    warn_if_too_slow(
        model,
        name=model.name,
        size_px=recipe.image.view_px(),
        num_images=num_images * num_views,
        device=device,
        precision=precision,
        instead="lower backbone.stored_views, or train on a machine with an NVIDIA GPU",
        backward=False,
    )
    shape = (num_images, num_views, model.neck.projection.in_features)
    header = {"descr": "<f2", "fortran_order": False, "shape": shape}
    row_bytes = shape[1] * shape[2] * 2
    with whole_folder(folder, needed=num_images * row_bytes) as hidden:
        # Written, not mapped: on a full disk this raises an error, where a map would end the process.
        with whole_file(hidden / ARRAY, needed=num_images * row_bytes) as file:
            np.lib.format.write_array_header_1_0(file, header)
            start = file.tell()
            # Rows of images that cannot be read stay zeros.
            reserve(file, start + num_images * row_bytes)
            for image_B, feature_BVF in computed_features(current, model, canvases, num_views, device=device):
                for image, feature_VF in zip(image_B.tolist(), feature_BVF, strict=True):
                    file.seek(start + image * row_bytes)
                    file.write(feature_VF.tobytes())
        write_json(hidden / DESCRIPTION, {**key, "unreadable": sorted(canvases.unreadable)})


def reserve(file: BinaryIO, num_bytes: int) -> None:
    """Gives a new file its final size, of zeros, so that a disk without enough space is an error at the start."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    else:
        file.truncate(num_bytes)


def computed_features(
    current: Stage, model: EmbeddingModel, canvases: CanvasLoader, num_views: int, *, device: str
) -> Iterator[tuple[Rows, HalfArray]]:
    """Yields images (B,) and their features (B, V, F), with a progress bar.

    An image is decoded once for all of its views. Raises CheckFailed for features that float16 cannot hold.
    """
    recipe = current.recipe
    image_batches = batches_of_one_shape(canvases.shapes_N2, recipe.eval.batch_size)
    with eval_mode(model):
        for batch in track(canvases.batches(image_batches), "features", total=len(image_batches)):
            canvas_BCHW = batch.canvas_BCHW.to(device)
            height, width = canvas_BCHW.shape[2:]
            shape_px = current.view_shape(current.begin, (height, width))
            features = []
            for view in range(num_views if batch.image_B.size else 0):
                image_BCHW = render_views(canvas_BCHW, stored_view(current, batch.image_B, view), shape_px)
                with torch.inference_mode(), autocast(device, recipe.train.precision):
                    features.append(model.features(image_BCHW).half().cpu().numpy())
            if not features:
                continue
            feature_BVF = np.stack(features, axis=1)
            if not np.isfinite(feature_BVF).all():
                raise CheckFailed(
                    f"{model.name}: some features are too large for float16: set backbone.stored_views to null"
                )
            yield batch.image_B, feature_BVF


def stored_view(current: Stage, image_B: Rows, view: int) -> ViewParameters:
    """The parameters of a stored view: the first one is the image as it is, the others are augmented."""
    augment = NOT_AUGMENTED if view == 0 else current.recipe.augment
    return draw_views(augment, seed=current.recipe.train.seed, image_B=image_B, view=view)


def read_features(folder: Path, shape: tuple[int, int, int]) -> StoredFeatures:
    """Maps the features of a folder, of a shape (N, V, F), into memory. Raises UserError where it is damaged."""
    num_images, num_views, num_features = shape
    unreadable = read_json(folder / DESCRIPTION).get("unreadable")
    try:
        feature_NVF: HalfArray = np.lib.format.open_memmap(folder / ARRAY, mode="r")  # refuses pickled objects
    except (OSError, ValueError, EOFError):
        feature_NVF = np.zeros(0, np.float16)
    is_valid = isinstance(unreadable, list) and all(
        type(image) is int and 0 <= image < num_images for image in unreadable
    )
    if not is_valid or feature_NVF.shape != shape or feature_NVF.dtype != np.float16:
        raise UserError(
            f"{folder}: damaged, expected float16 features of {num_images} images, {num_views} views and "
            f"{num_features} dimensions: delete the folder"
        )
    readable_N = np.ones(num_images, dtype=np.bool_)
    readable_N[unreadable] = False
    return StoredFeatures(feature_NVF=feature_NVF, readable_N=readable_N)
