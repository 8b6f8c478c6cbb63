"""Retrieval of a torch model on a manifest split, by the protocol of the manifest."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch

from edgeembed.config import EvalSection
from edgeembed.data.loader import Canvases
from edgeembed.data.manifest import Manifest, Rows
from edgeembed.data.shapes import Shapes, aspect_shapes, square_shapes
from edgeembed.errors import UserError
from edgeembed.evaluation import FloatArray, score_rows
from edgeembed.metrics import RetrievalScores
from edgeembed.teacher.model import Network
from edgeembed.teacher.precision import autocast

log = logging.getLogger(__name__)


def steps_between_evaluations(section: EvalSection, manifest: Manifest, total_steps: int) -> int:
    """0 for never: where the recipe says so, and, with a warning, where there is nothing to evaluate on."""
    if section.every_steps != 0 and not manifest.rows("val").size:
        log.warning("the manifest has no val split: training goes on without evaluation")
        return 0
    return math.ceil(total_steps / 5) if section.every_steps is None else section.every_steps


def embed_files(
    model: Network, files: Sequence[str], *, batch_size: int, workers: int, device: str, precision: str
) -> tuple[FloatArray, Rows]:
    """Embeds files as the device will see them: (M, D) float32 and the positions of the M files that could be read."""
    shapes_N2 = input_shapes(model, files, workers=workers)
    canvases = Canvases(files=files, shapes_N2=shapes_N2, workers=workers)
    embeddings, kept = [], []
    was_training = model.training
    model.eval()
    with torch.inference_mode(), autocast(device, precision):
        for batch in canvases.batches(batches_of_one_shape(shapes_N2, batch_size)):
            if batch.image_B.size:
                image_BCHW = batch.canvas_BCHW.to(device).contiguous(memory_format=torch.channels_last)
                embeddings.append(model(image_BCHW).float().cpu().numpy())
                kept.append(batch.image_B)
    model.train(was_training)
    if not kept:
        raise UserError(f"none of {len(files)} images can be decoded, first {files[0] if files else '(no files)'}")
    position_M = np.concatenate(kept)
    in_order_M = position_M.argsort()
    return np.concatenate(embeddings)[in_order_M], position_M[in_order_M]


def input_shapes(model: Network, files: Sequence[str], *, workers: int) -> Shapes:
    """Height and width that a model wants of each file, (N, 2)."""
    if model.keep_aspect:
        return aspect_shapes(files, model.size_px, workers=workers)
    return square_shapes(len(files), model.size_px)


def batches_of_one_shape(shapes_N2: Shapes, batch_size: int) -> list[Rows]:
    batches: list[Rows] = []
    for shape in np.unique(shapes_N2, axis=0):
        of_shape = np.flatnonzero((shapes_N2 == shape).all(axis=1))
        batches += [of_shape[i : i + batch_size] for i in range(0, len(of_shape), batch_size)]
    return batches


def evaluate(
    model: Network,
    manifest: Manifest,
    split: str,
    *,
    batch_size: int,
    workers: int,
    device: str,
    precision: str,
) -> RetrievalScores:
    """Scores a model on the "val" or "test" protocol; files that cannot be decoded are left out (and logged)."""
    query, index = manifest.evaluation(split)
    rows = np.union1d(query, index)
    embedding_ND, kept = embed_files(
        model,
        [manifest.files[row] for row in rows],
        batch_size=batch_size,
        workers=workers,
        device=device,
        precision=precision,
    )
    return score_rows(embedding_ND, rows[kept], embedding_ND, rows[kept], manifest, query, index)
