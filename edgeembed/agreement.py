"""How closely two models embed the same images: the cosine between the two embeddings of each image.

Used for every comparison of embeddings in the package: an exported file with torch, a file with the fp32 file on this
machine, two bundles, stored teacher embeddings with computed ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeembed.arrays import Float64Array, FloatArray
from edgeembed.spread import relative_errors

UNIT_TOLERANCE = 1e-3
"""Largest difference of an embedding's length from 1. A norm that overflows in float16, for example, gives zeros."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingAgreement:
    """The cosines between two embeddings of each of `images` images: the smallest, the 1st percentile and the median.

    `max_abs`: largest absolute difference of two elements. `relative_error_p50`: median over images of 1 - cosine, as
    a share of its mean between different images; None for a single image (see `spread.relative_errors`).
    """

    images: int
    cosine_min: float
    cosine_p1: float
    cosine_p50: float
    max_abs: float
    relative_error_p50: float | None


def measure_agreement(
    reference_ND: FloatArray, candidate_ND: FloatArray, *, normalise: bool = False
) -> EmbeddingAgreement:
    """Compares two embeddings, (N, D), of the same N >= 1 images.

    Both must have unit length, so that the inner product is the cosine; `normalise` divides by their lengths, for
    vectors that were stored as float16 or that nobody checked.
    """
    # In float64: near a cosine of 1, float32 has few digits left for the difference.
    cosine_N = np.einsum("nd,nd->n", reference_ND.astype(np.float64), candidate_ND.astype(np.float64))
    if normalise:
        cosine_N /= lengths(reference_ND) * lengths(candidate_ND)
    p1, p50 = np.percentile(cosine_N, [1, 50])
    error_N = relative_errors(reference_ND, candidate_ND)
    return EmbeddingAgreement(
        images=len(cosine_N),
        cosine_min=float(cosine_N.min()),
        cosine_p1=float(p1),
        cosine_p50=float(p50),
        max_abs=float(np.abs(reference_ND - candidate_ND).max()),
        relative_error_p50=None if error_N is None else float(np.median(error_N)),
    )


def lengths(embedding_ND: FloatArray) -> Float64Array:
    """The length of each embedding, (N,), summed in float64."""
    length_N: Float64Array = np.sqrt(np.einsum("nd,nd->n", embedding_ND, embedding_ND, dtype=np.float64))
    return length_N


def find_defect(embedding_ND: FloatArray, shape: tuple[int, ...] | None = None) -> str | None:
    """Why embeddings are broken, so that a cosine of them says nothing; None where they are sound.

    They are broken where they have another shape than `shape`, are not finite, or are not of unit length. One such
    vector is enough: a percentile over images would overlook it.
    """
    if shape is not None and embedding_ND.shape != shape:
        return f"gives an output of shape {embedding_ND.shape}, expected {shape}"
    length_N = lengths(embedding_ND)
    wrong_W = length_N[~(np.abs(length_N - 1) < UNIT_TOLERANCE)]  # NaN is wrong too
    return f"gives vectors of length {wrong_W[0]:.4f}, expected 1" if len(wrong_W) else None
