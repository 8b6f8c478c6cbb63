"""Exact search for the images whose embeddings are most similar to a query's, with numpy alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeembed.arrays import FloatArray, IntArray
from edgeembed.device.embeddings import Embeddings, read_embeddings, read_npy
from edgeembed.metrics import top_k


class Index:
    """Embeddings ready to be searched; among 100,000 images a search takes some milliseconds for each query.

        index = edgeembed.Index.open("embeddings.safetensors")
        positions, similarities = index.search(edgeembed.Embedder().embed("query.jpg"), k=5)
        index.paths[positions[0, 0]]  # the image that is most similar to the query

    `paths`, `labels` and `space_id` are those of `Embeddings`; all are None where the index was opened from a .npy
    file, which holds vectors only, and `labels` also where the images were embedded without labels.
    """

    def __init__(self, embeddings: Embeddings | FloatArray) -> None:
        """`embeddings` are `Embeddings`, or unit vectors (N, D) alone."""
        self.paths: tuple[str, ...] | None = None
        self.labels: tuple[str | None, ...] | None = None
        self.space_id: str | None = None
        if isinstance(embeddings, Embeddings):
            self.embedding_ND = embeddings.embedding_ND
            self.paths, self.labels, self.space_id = embeddings.paths, embeddings.labels, embeddings.space_id
        else:
            self.embedding_ND = embeddings

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """Opens a file that `edgeembed embed` wrote: .safetensors, .parquet (needs pyarrow) or .npy.

        Raises UserError for a file that is missing, damaged or of another kind.
        """
        path = Path(path)
        return cls(read_npy(path) if path.suffix == ".npy" else read_embeddings(path))

    def __len__(self) -> int:
        return len(self.embedding_ND)

    def search(self, query_QD: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
        """Positions in the index, (Q, k) int64, and cosine similarities, (Q, k) float32, of the k best, best first.

        Where k is larger than the index there are as many columns as the index has images. Images that are equally
        similar come in the order of the index. Raises UserError for queries that are not (Q, D), that have another
        number of dimensions than the index or that hold NaN, and for a k below 1.
        """
        # Exact search: on a device, an approximate index pays off only for far more images.
        return top_k(np.asarray(query_QD), self.embedding_ND, min(k, len(self)))
