"""How far apart the embeddings of different images lie, and how large an error is compared with that distance.

Two embeddings of one image at a cosine of .998 agree well where different images have cosines around .3, and badly
where they have cosines around .97. All figures here depend on the set of images: similar images have little spread in
any embedding space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeembed.arrays import Float64Array, FloatArray

MOST_RELATIVE_ERROR = 0.04
"""Largest accepted error, as a share of the mean distance between different images.

It is that of a cosine of .98, the lower limit of the int8 gate, where different images have a mean cosine of .5.

The share of nearest neighbours that change depends on this figure, whatever the spread. Simulated with random errors
of .0025, .01, .025, .04 and .05: 10, 19, 33, 41 and 44 % of 300 vectors of mean cosine .97 and effective dimension
2.9; 12, 24, 35, 43 and 48 % of 300 vectors of mean cosine .53 and effective dimension 22. Measured on
an int8 file of MobileNetV4-small (ONNX Runtime, AMD EPYC): .0003 and 9 % on 1,000 Grocery Store photographs, .002 and
22 % on the 64 rendered images of `doctor`.
"""
# Limits of a collapsed space; the measurements are in `is_collapsed`.
MOST_MEAN_COSINE = 0.9
LEAST_EFFECTIVE_DIM = 4.0
LEAST_IMAGES = 16
"""With fewer images, the covariance is no reliable estimate."""
SMALLEST_DISTANCE = 1e-12  # of 1 - cosine: the rounding error of float32 vectors that are all equal


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The spread of the embeddings of some images.

    `mean_cosine`: mean over all pairs of different images. `effective_dim`: participation ratio of the eigenvalues l of
    the covariance, (sum l)^2 / sum l^2: D where all directions have the same variance, 1 where a single one has any.
    """

    images: int
    mean_cosine: float
    effective_dim: float


def spread_of(embedding_ND: FloatArray) -> Spread | None:
    """The exact spread of unit vectors, in O(N D^2); None for fewer than two images or values that are not finite."""
    if len(embedding_ND) < 2 or not np.isfinite(embedding_ND).all():
        return None
    embedding_ND = np.asarray(embedding_ND, np.float64)
    count, sum_D = len(embedding_ND), embedding_ND.sum(axis=0)
    # The sum of all pairs' cosines is |sum of vectors|^2 less the squares: no N x N matrix is needed.
    pairs_and_squares, squares = float(sum_D @ sum_D), float((embedding_ND**2).sum())
    # np.cov of one dimension is a scalar.
    variance_D = np.linalg.eigvalsh(np.atleast_2d(np.cov(embedding_ND.T)))
    total = float((variance_D**2).sum())
    return Spread(
        images=count,
        mean_cosine=(pairs_and_squares - squares) / (count * (count - 1)),
        effective_dim=float(variance_D.sum() ** 2) / total if total > 0 else 0.0,
    )


def relative_errors(reference_ND: FloatArray, candidate_ND: FloatArray) -> Float64Array | None:
    """Each image's squared error as a share of the mean squared distance between different images (N,).

    (1 - cosine of an image's two embeddings) / (1 - mean cosine between images of the reference); None for fewer
    than two images, between which there is no distance.
    """
    spread = spread_of(reference_ND)
    if spread is None:
        return None
    reference_ND, candidate_ND = np.asarray(reference_ND, np.float64), np.asarray(candidate_ND, np.float64)
    # Half the squared difference is 1 - cosine of unit vectors, without its rounding error.
    error_N: Float64Array = ((reference_ND - candidate_ND) ** 2).sum(axis=1) / 2
    return error_N / max(1.0 - spread.mean_cosine, SMALLEST_DISTANCE)


def error_beside_spread(relative_error_p50: float | None, most: float = MOST_RELATIVE_ERROR) -> str | None:
    """The reason to refuse embeddings whose error is large compared with the distances between images; else None."""
    if relative_error_p50 is None or relative_error_p50 <= most:
        return None
    return (
        f"error is {relative_error_p50:.3f} of the mean distance between images (median of 1 - cosine over mean of "
        f"1 - cosine between different images), above {most:g}: nearest neighbours change"
    )


def is_collapsed(spread: Spread | None, *, num_classes: int | None = None) -> bool:
    """Whether nearly all embeddings point the same way, or differ in a few directions only.

    K perfectly separated classes have an effective dimension of K - 1, so less is expected of few classes.
    Measured on Grocery Store photographs (mean cosine, effective dimension): a trained MobileNetV4-small .53 and 27
    on 1,000; untrained networks of seed 0 on 400: MobileNetV4-small .99 and 15, ResNet-18 .96 and 2.8, test_resnet .99
    and 2.8, ViT-Ti/16 .75 and 2.7. Either figure alone misses some.
    """
    if spread is None or spread.images < LEAST_IMAGES:
        return False
    # Half of the effective dimension of perfectly separated classes.
    least_dim = LEAST_EFFECTIVE_DIM if num_classes is None else min(LEAST_EFFECTIVE_DIM, (num_classes - 1) / 2)
    return spread.mean_cosine > MOST_MEAN_COSINE or spread.effective_dim < least_dim


def describe(spread: Spread) -> str:
    """Both figures of a spread, for one line of text."""
    return (
        f"mean cosine {spread.mean_cosine:.3f} between different images, effective dimension {spread.effective_dim:.1f}"
    )


def collapse_warning(name: str, spread: Spread | None, *, num_classes: int | None = None) -> str | None:
    """One line that names a collapsed space and what to do; None for any other."""
    if spread is None or not is_collapsed(spread, num_classes=num_classes):
        return None
    return (
        f"{name}: the embedding space is collapsed on these {spread.images} images ({describe(spread)}): "
        "small errors change results; train for more steps, from pretrained weights, on more classes and on images "
        "like these, or a teacher with a larger head.margin"
    )
