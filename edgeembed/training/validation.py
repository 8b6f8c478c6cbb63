"""Retrieval of a torch model on a manifest split, by the protocol of the manifest."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from edgeembed.arrays import FloatArray
from edgeembed.config import EvalSection
from edgeembed.data.loader import CanvasLoader
from edgeembed.data.manifest import Manifest, Rows
from edgeembed.data.shapes import Shapes, aspect_shapes, square_shapes
from edgeembed.evaluation import EmbeddedRows, RetrievalProtocol
from edgeembed.metrics import RetrievalScores
from edgeembed.network.model import Network
from edgeembed.spread import Spread, spread_of
from edgeembed.training.precision import autocast

log = logging.getLogger(__name__)


NEVER = "eval.every_steps = 0"


def plan_validation(section: EvalSection, manifest: Manifest) -> RetrievalProtocol:
    """The protocol of the val split, logged before training starts; `not_scored` where the recipe says never."""
    protocol = RetrievalProtocol.of_split(manifest, "val")
    if section.every_steps == 0:
        return dataclasses.replace(protocol, not_scored=protocol.not_scored or NEVER)
    protocol.log_coverage()
    return protocol


def steps_between_evaluations(section: EvalSection, validation: RetrievalProtocol, total_steps: int) -> int:
    """0 for never: where the recipe says so, and where there is nothing to score."""
    if validation.not_scored is not None:
        return 0
    return math.ceil(total_steps / 5) if section.every_steps is None else section.every_steps


def embed_files(
    model: Network, files: Sequence[str], *, batch_size: int, workers: int, device: str, precision: str
) -> tuple[FloatArray, Rows]:
    """Embeds files as the device will see them: (M, D) float32 and the positions of the M files that could be read.

    M is 0 where none of them could.
    """
    shapes_N2 = input_shapes(model, files, workers=workers)
    canvases = CanvasLoader(files=files, shapes_N2=shapes_N2, workers=workers)
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
        log.warning("none of %d images can be decoded: run `edgeembed data check`", len(files))
        return np.zeros((0, model.dim), np.float32), np.zeros(0, np.int64)
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


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A model's scores, and the spread of its embeddings of queries and index together; None for fewer than two."""

    scores: RetrievalScores
    spread: Spread | None


def evaluate(
    model: Network, protocol: RetrievalProtocol, *, batch_size: int, workers: int, device: str, precision: str
) -> Evaluated:
    """Scores a model on a split's protocol; files that cannot be decoded are left out (and logged)."""
    embedding_ND, kept = embed_files(
        model, protocol.files, batch_size=batch_size, workers=workers, device=device, precision=precision
    )
    embedded = EmbeddedRows(embedding_ND=embedding_ND, row_N=protocol.rows[kept])
    return Evaluated(scores=protocol.score(embedded, embedded).scores, spread=spread_of(embedding_ND))
