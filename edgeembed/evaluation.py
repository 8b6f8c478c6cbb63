"""Retrieval scores of embeddings of manifest rows: one protocol for training, the gate of an export and the bench."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgeembed.data.manifest import Manifest, Rows
from edgeembed.metrics import RetrievalScores, retrieval_scores

FloatArray = npt.NDArray[np.float32]


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
    return retrieval_scores(
        query_embedding_MD[as_query],
        index_embedding_ND[as_index],
        **protocol(manifest, query_rows_M[as_query], index_rows_N[as_index]),
    )


def protocol(manifest: Manifest, query_rows: Rows, index_rows: Rows) -> dict[str, Any]:
    """Labels, domains and identities of queries and index images, as metrics.py takes them."""
    return {
        "query_label": [manifest.label[row] or "" for row in query_rows],
        "index_label": [manifest.label[row] or "" for row in index_rows],
        "query_domain": [manifest.domain[row] for row in query_rows],
        "index_domain": [manifest.domain[row] for row in index_rows],
        "query_id": query_rows,
        "index_id": index_rows,
    }
