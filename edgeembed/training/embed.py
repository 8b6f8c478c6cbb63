"""Embeds image files with a torch network, as the exported network will see them on the device."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from edgeembed.arrays import FloatArray
from edgeembed.data.loader import CanvasLoader
from edgeembed.data.manifest import Rows
from edgeembed.data.shapes import Shapes, aspect_shapes, square_shapes
from edgeembed.network.eval_mode import eval_mode
from edgeembed.network.model import FeatureExtractor, Network
from edgeembed.training.precision import autocast

log = logging.getLogger(__name__)


def embed_files(
    model: Network | FeatureExtractor,
    files: Sequence[str],
    *,
    batch_size: int,
    workers: int,
    device: str,
    precision: str,
) -> tuple[FloatArray, Rows]:
    """Embeddings or features (M, D), float32, and the positions in `files` (M,), ascending, of those that were decoded.

    M is 0 where no file could. The network computes in evaluation mode and has its earlier modes afterwards.
    """
    shapes_N2 = input_shapes(model, files, workers=workers)
    canvases = CanvasLoader(files=files, shapes_N2=shapes_N2, workers=workers)
    embeddings, positions = [], []
    with eval_mode(model), torch.inference_mode(), autocast(device, precision):
        for batch in canvases.batches(batches_of_one_shape(shapes_N2, batch_size)):
            if batch.image_B.size:
                image_BCHW = batch.canvas_BCHW.to(device).contiguous(memory_format=torch.channels_last)
                embeddings.append(model(image_BCHW).float().cpu().numpy())
                positions.append(batch.image_B)
    if not positions:
        log.warning("none of %d images can be decoded: run `edgeembed data check`", len(files))
        return np.zeros((0, model.dim), np.float32), np.zeros(0, np.int64)
    position_M = np.concatenate(positions)
    order_M = position_M.argsort()  # batches are in the order of their shapes
    return np.concatenate(embeddings)[order_M], position_M[order_M]


def input_shapes(model: Network | FeatureExtractor, files: Sequence[str], *, workers: int) -> Shapes:
    """Height and width in pixels of the network's input for each file, (N, 2)."""
    if model.keep_aspect:
        return aspect_shapes(files, model.size_px, workers=workers)
    return square_shapes(len(files), model.size_px)


def batches_of_one_shape(shapes_N2: Shapes, batch_size: int) -> list[Rows]:
    """Positions of the images of each batch, (B,) with B at most `batch_size`; a batch holds images of one shape."""
    batches: list[Rows] = []
    for shape in np.unique(shapes_N2, axis=0):
        of_shape = np.flatnonzero((shapes_N2 == shape).all(axis=1))
        batches += [of_shape[i : i + batch_size] for i in range(0, len(of_shape), batch_size)]
    return batches
