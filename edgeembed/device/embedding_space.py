"""Embedding spaces by their id, and embeddings shortened to their leading dimensions."""

from __future__ import annotations

import numpy as np

from edgeembed.arrays import FloatArray
from edgeembed.errors import UserError


def short_space_id(space_id: str, dim: int) -> str:
    """The id of the space of the `dim` leading dimensions of a PCA-rotated space."""
    return f"{space_id}:{dim}"


def long_space_id(space_id: str) -> str:
    """The id of the full space of a shortened one; of a full space, its own id."""
    return space_id.partition(":")[0]


def shorten(embedding_ND: FloatArray, dim: int) -> FloatArray:
    """The `dim` leading dimensions of embeddings, (N, dim), as unit vectors."""
    short_ND: FloatArray = embedding_ND[:, :dim]
    length_N1 = np.linalg.norm(short_ND, axis=1, keepdims=True)
    unit_ND: FloatArray = short_ND / np.maximum(length_N1, np.float32(1e-12))
    return unit_ND


def require_same_space(a_name: str, a_id: str, b_name: str, b_id: str) -> None:
    """Raises UserError for embeddings or models of different teachers, whose distances have no meaning.

    A full space and a shortened one of it match, as the full embeddings can be shortened too.
    """
    # Leading dimensions of a PCA-rotated space are comparable with each other whatever their number.
    if long_space_id(a_id) != long_space_id(b_id):
        raise UserError(
            f"{a_name} is in embedding space {a_id}, {b_name} in {b_id}: "
            "use two of one teacher, or embed the images again"
        )
