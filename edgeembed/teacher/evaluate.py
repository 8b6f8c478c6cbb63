"""Retrieval of a torch model on a manifest split, by the protocol of the manifest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgeembed.data.loader import Squares
from edgeembed.data.manifest import Manifest, Rows
from edgeembed.errors import UserError
from edgeembed.metrics import RetrievalScores, retrieval_scores

FloatArray = npt.NDArray[np.float32]


def embed_files(
    model: nn.Module, files: Sequence[str], *, size_px: int, batch_size: int, workers: int, device: str, precision: str
) -> tuple[FloatArray, Rows]:
    """Embeds files as the device will see them: (M, D) float32 and the positions of the M files that could be read."""
    squares = Squares(files=files, size_px=size_px, workers=workers)
    wanted = [np.arange(i, min(i + batch_size, len(files))) for i in range(0, len(files), batch_size)]
    embeddings, kept = [], []
    was_training = model.training
    model.eval()
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        for batch in squares.batches(wanted):
            if batch.image_B.size:
                image_BCHW = batch.canvas_BCHW.to(device).contiguous(memory_format=torch.channels_last)
                embeddings.append(model(image_BCHW).float().cpu().numpy())
                kept.append(batch.image_B)
    model.train(was_training)
    if not kept:
        raise UserError(f"none of {len(files)} images can be decoded, first {files[0] if files else '(no files)'}")
    return np.concatenate(embeddings), np.concatenate(kept)


def evaluate(
    model: nn.Module,
    manifest: Manifest,
    split: str,
    *,
    size_px: int,
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
        size_px=size_px,
        batch_size=batch_size,
        workers=workers,
        device=device,
        precision=precision,
    )
    return score_rows(embedding_ND, rows[kept], embedding_ND, rows[kept], manifest, query, index)


def score_rows(
    query_embedding_MD: FloatArray,
    query_rows_M: Rows,
    index_embedding_ND: FloatArray,
    index_rows_N: Rows,
    manifest: Manifest,
    query: Rows,
    index: Rows,
) -> RetrievalScores:
    """Scores embeddings given for some manifest rows: those of `query` against those of `index`."""
    as_query, as_index = np.isin(query_rows_M, query), np.isin(index_rows_N, index)
    query_rows, index_rows = query_rows_M[as_query], index_rows_N[as_index]
    return retrieval_scores(
        query_embedding_MD[as_query],
        index_embedding_ND[as_index],
        query_label=[manifest.label[row] or "" for row in query_rows],
        index_label=[manifest.label[row] or "" for row in index_rows],
        query_domain=[manifest.domain[row] for row in query_rows],
        index_domain=[manifest.domain[row] for row in index_rows],
        query_id=query_rows,
        index_id=index_rows,
    )
