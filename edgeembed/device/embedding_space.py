"""Embedding spaces by their id, and embeddings shortened to their leading dimensions."""

from __future__ import annotations

import numpy as np

from edgeembed.arrays import FloatArray
from edgeembed.errors import UserError


def short_space_id(space_id: str, dim: int) -> str:
    """Names the space of the first `dim` numbers of a space whose dimensions are ordered by weight."""
    return f"{space_id}:{dim}"


def long_space_id(space_id: str) -> str:
    """The space that a short one is a prefix of; itself for one that is not short."""
    return space_id.partition(":")[0]


def shorten(embedding_ND: FloatArray, dim: int) -> FloatArray:
    """The first `dim` numbers, as unit vectors."""
    short_ND: FloatArray = embedding_ND[:, :dim]
    length_N1 = np.linalg.norm(short_ND, axis=1, keepdims=True)
    unit_ND: FloatArray = short_ND / np.maximum(length_N1, np.float32(1e-12))
    return unit_ND


def require_same_space(a_name: str, a_id: str, b_name: str, b_id: str) -> None:
    """Raises UserError where two things come from different teachers: their distances would mean nothing.

    A short space and the one that it is a prefix of go together, once the longer embeddings are shortened.
    """
    if long_space_id(a_id) != long_space_id(b_id):
        raise UserError(
            f"{a_name} is in embedding space {a_id}, {b_name} in {b_id}: "
            "use two of one teacher, or embed the images again"
        )
