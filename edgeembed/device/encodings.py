"""Embeddings in fewer bytes: a byte a number, or a bit a number, and back to unit vectors.

Bits are the signs after a rotation fitted to the embeddings (iterative quantisation, Gong & Lazebnik 2011), which
spreads what they say evenly over the bits. Decoded, they are vectors of the original space again, so that whatever
compares embeddings compares these, and a query need not be rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeembed.arrays import FloatArray

ITERATIONS = 50
FITTED_ON = 100_000  # embeddings at most


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """`code`: (N, D) int8, or (N, ceil(D / 8)) uint8 with `rotation_DD`."""

    code: npt.NDArray[np.int8] | npt.NDArray[np.uint8]
    dim: int
    rotation_DD: FloatArray | None = None


def to_int8(embedding_ND: FloatArray) -> Encoded:
    """Every vector by its own largest number: the length that this changes comes back with the norm."""
    largest_N1 = np.abs(embedding_ND).max(axis=1, keepdims=True)
    code_ND = np.rint(embedding_ND * (127.0 / np.maximum(largest_N1, 1e-12))).astype(np.int8)
    return Encoded(code=code_ND, dim=embedding_ND.shape[1])


def to_binary(embedding_ND: FloatArray) -> Encoded:
    """A bit a number, 8 to a byte, after a rotation fitted to these embeddings."""
    rotation_DD = fit_rotation(embedding_ND)
    code_NB = np.packbits(embedding_ND @ rotation_DD.T > 0, axis=1)
    return Encoded(code=code_NB, dim=embedding_ND.shape[1], rotation_DD=rotation_DD)


def decode(encoded: Encoded) -> FloatArray:
    """(N, D) unit vectors near the encoded ones."""
    if encoded.rotation_DD is None:
        vector_ND: FloatArray = encoded.code.astype(np.float32)
    else:
        bits_ND = np.unpackbits(encoded.code.view(np.uint8), axis=1, count=encoded.dim)
        vector_ND = np.where(bits_ND, np.float32(1.0), np.float32(-1.0)) @ encoded.rotation_DD
    length_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    unit_ND: FloatArray = vector_ND / np.maximum(length_N1, np.float32(1e-12))
    return unit_ND


def fit_rotation(embedding_ND: FloatArray) -> FloatArray:
    """The rotation (D, D), rows the new axes, that brings embeddings closest to the corners of a cube."""
    draw = np.random.default_rng(0)
    sample_ND = embedding_ND[draw.permutation(len(embedding_ND))[:FITTED_ON]].astype(np.float64)
    rotation_DD = np.linalg.qr(draw.standard_normal((embedding_ND.shape[1],) * 2))[0]
    for _ in range(ITERATIONS):
        corner_ND = np.where(sample_ND @ rotation_DD.T > 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(corner_ND.T @ sample_ND)  # orthogonal Procrustes
        rotation_DD = left @ right
    fitted_DD: FloatArray = rotation_DD.astype(np.float32)
    return fitted_DD


ENCODINGS: dict[str, Callable[[FloatArray], Encoded]] = {"int8": to_int8, "binary": to_binary}
