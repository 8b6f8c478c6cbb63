"""Stores embeddings in fewer bytes, with 8 bits or 1 bit for each dimension, and decodes them to unit vectors.

The bits of binary codes are signs after a rotation that is fitted to the embeddings (iterative quantisation, Gong &
Lazebnik 2011), so that each bit carries about the same information. Decoded codes are unit vectors of the original
space: they are compared like any other embeddings, with queries in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeembed.arrays import FloatArray

ITERATIONS = 50
MAX_FIT_EMBEDDINGS = 100_000


@dataclass(frozen=True, kw_only=True)
class EncodedVectors:
    """`code`: (N, D) int8, or (N, ceil(D / 8)) uint8 with `rotation_DD`."""

    code: npt.NDArray[np.int8] | npt.NDArray[np.uint8]
    dim: int
    rotation_DD: FloatArray | None = None


def encode_int8(embedding_ND: FloatArray) -> EncodedVectors:
    """Scales every vector so that its largest element is 127; `decode` restores the unit length."""
    # Scaling each vector by itself uses all 255 levels; its length carries no information.
    largest_N1 = np.abs(embedding_ND).max(axis=1, keepdims=True)
    code_ND = np.rint(embedding_ND * (127.0 / np.maximum(largest_N1, 1e-12))).astype(np.int8)
    return EncodedVectors(code=code_ND, dim=embedding_ND.shape[1])


def encode_binary(embedding_ND: FloatArray) -> EncodedVectors:
    """One bit for each dimension, 8 to a byte: the signs after a rotation that is fitted to these embeddings."""
    rotation_DD = fit_rotation(embedding_ND)
    code_NB = np.packbits(embedding_ND @ rotation_DD.T > 0, axis=1)
    return EncodedVectors(code=code_NB, dim=embedding_ND.shape[1], rotation_DD=rotation_DD)


def decode(encoded: EncodedVectors) -> FloatArray:
    """Unit vectors (N, D) that approximate the encoded ones."""
    if encoded.rotation_DD is None:
        vector_ND: FloatArray = encoded.code.astype(np.float32)
    else:
        bits_ND = np.unpackbits(encoded.code.view(np.uint8), axis=1, count=encoded.dim)
        # The corner of the cube, rotated back into the original space.
        vector_ND = np.where(bits_ND, np.float32(1.0), np.float32(-1.0)) @ encoded.rotation_DD
    length_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    unit_ND: FloatArray = vector_ND / np.maximum(length_N1, np.float32(1e-12))
    return unit_ND


def fit_rotation(embedding_ND: FloatArray) -> FloatArray:
    """The rotation (D, D), whose rows are the new axes, after which embeddings lie closest to the corners of a cube."""
    rng = np.random.default_rng(0)
    # In float64 and with a fixed seed, so that the same embeddings give the same codes.
    sample_ND = embedding_ND[rng.permutation(len(embedding_ND))[:MAX_FIT_EMBEDDINGS]].astype(np.float64)
    rotation_DD = np.linalg.qr(rng.standard_normal((embedding_ND.shape[1],) * 2))[0]
    for _ in range(ITERATIONS):
        corner_ND = np.where(sample_ND @ rotation_DD.T > 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(corner_ND.T @ sample_ND)  # orthogonal Procrustes
        rotation_DD = left @ right
    fitted_DD: FloatArray = rotation_DD.astype(np.float32)
    return fitted_DD


ENCODINGS: dict[str, Callable[[FloatArray], EncodedVectors]] = {"int8": encode_int8, "binary": encode_binary}
