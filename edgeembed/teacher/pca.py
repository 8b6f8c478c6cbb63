"""Rotates a finished teacher's space by PCA, so that the leading dimensions discriminate best and can be used alone.

A rotation changes no cosine, and folds into the weights of a linear neck. Its axes are the eigenvectors of the
embeddings' covariance, largest variance first. The covariance is centred, because the mean is a direction that all
images share: it would take the first dimension and discriminate nothing. Kusupati et al. (2022) train for short
prefixes; the rotation needs no training, and every student and index of the space inherits it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeembed.config import EvalSection
from edgeembed.data.manifest import Manifest
from edgeembed.errors import UserError
from edgeembed.model_json import TrainingData
from edgeembed.network.model import EmbeddingModel, FeatureExtractor, Network
from edgeembed.progress import track
from edgeembed.teacher.margin import ClassCentres
from edgeembed.training.ema import warmed_up_decay
from edgeembed.training.embed import embed_files

log = logging.getLogger(__name__)

DECAY = 0.999  # the last thousand steps or so count
CHUNK_IMAGES = 2048  # embeddings of this many images are in memory at once


class Moments(nn.Module):
    """Running mean (D,) and second moments (D, D) of the embeddings of training steps; checkpoints contain them."""

    mean_D: Tensor
    second_DD: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(dim))
        self.register_buffer("second_DD", torch.zeros(dim, dim))

    @torch.no_grad()
    def add(self, embedding_BD: Tensor, *, step: int) -> None:
        """Moves both towards those of a batch."""
        embedding_BD = embedding_BD.float()
        weight = 1.0 - warmed_up_decay(DECAY, step)
        self.mean_D.lerp_(embedding_BD.mean(dim=0), weight)
        self.second_DD.lerp_(embedding_BD.T @ embedding_BD / len(embedding_BD), weight)

    @property
    def covariance(self) -> Tensor:
        """(D, D), float64 on the CPU, as Apple's GPUs have no float64."""
        mean_D, second_DD = self.mean_D.cpu().double(), self.second_DD.cpu().double()
        # A difference of nearly equal values, hence float64.
        return second_DD - torch.outer(mean_D, mean_D)


def rotate_by_pca(model: EmbeddingModel, centres: ClassCentres, moments: Moments) -> None:
    """Rotates neck and centres in place and marks the model as PCA-rotated.

    Leaves all as it is where the neck ends in batch norm, which scales each dimension separately.
    """
    projection = model.neck.projection
    if not isinstance(model.neck.batch_norm, nn.Identity):
        log.info("dimensions are not PCA-rotated: the neck ends in batch norm")
        return
    # R (W x + b) = (R W) x + R b. The centres turn with the embeddings, so that their cosines stay.
    with torch.no_grad():
        rotation_DD = principal_axes(moments.covariance)
        projection.weight.copy_((rotation_DD @ projection.weight.cpu().double()).float())
        projection.bias.copy_((rotation_DD @ projection.bias.cpu().double()).float())
        centres.weight.copy_((centres.weight.cpu().double() @ rotation_DD.T).float())
    model.pca_rotated = True


def principal_axes(covariance_DD: Tensor) -> Tensor:
    """(D, D), whose rows are the eigenvectors, largest variance first; the largest entry of each is positive."""
    _, axis_DD = torch.linalg.eigh(covariance_DD)
    # eigh returns eigenvectors as columns, smallest variance first: now rows, largest first.
    axis_DD = axis_DD.flip(1).T
    # An eigenvector's sign is arbitrary, and libraries differ: fixed, so that a run gives the same space everywhere.
    largest_D1 = axis_DD.gather(1, axis_DD.abs().argmax(dim=1, keepdim=True))
    signed_DD: Tensor = axis_DD * largest_D1.sign()
    return signed_DD


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean (D,) and covariance (D, D) of vectors, float64 on the CPU."""

    mean_D: Tensor
    covariance_DD: Tensor


def training_statistics(
    model: Network | FeatureExtractor,
    manifest: Manifest,
    *,
    at_least: int,
    workers: int,
    device: str,
    precision: str,
) -> tuple[Statistics, TrainingData]:
    """Returns the statistics of what a network computes for a manifest's training images, and what they are.

    Images that cannot be decoded are counted and left out. Raises UserError where fewer than `at_least` are left.
    """
    row_N = manifest.training_rows()
    files = [manifest.files[row] for row in row_N]
    sum_D = torch.zeros(model.dim, dtype=torch.float64)
    second_DD = torch.zeros(model.dim, model.dim, dtype=torch.float64)
    num_images = 0
    chunks = [files[begin : begin + CHUNK_IMAGES] for begin in range(0, len(files), CHUNK_IMAGES)]
    for chunk in track(chunks, "embedding training images", total=len(chunks)):
        embedding_MD, kept = embed_files(
            model, chunk, batch_size=EvalSection().batch_size, workers=workers, device=device, precision=precision
        )
        vector_MD = torch.from_numpy(embedding_MD).double()
        sum_D += vector_MD.sum(dim=0)
        second_DD += vector_MD.T @ vector_MD
        num_images += len(kept)
    require_images(num_images, at_least)
    mean_D = sum_D / num_images
    statistics = Statistics(mean_D=mean_D, covariance_DD=second_DD / num_images - torch.outer(mean_D, mean_D))
    data = TrainingData(
        fingerprint=manifest.fingerprint,
        manifest=str(manifest.source),
        images=len(files),
        classes=len(manifest.class_names(row_N)),
        unreadable=len(files) - num_images,
    )
    return statistics, data


def require_images(num_images: int, at_least: int) -> None:
    """Raises UserError for too few training images: their covariance has no more axes than images, less one."""
    if num_images < at_least:
        raise UserError(
            f"{num_images} training images that can be decoded: {at_least - 1} embedding dimensions need at least "
            f"{at_least}: give more images in split train, or a smaller --dim"
        )
