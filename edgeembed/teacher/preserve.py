"""A loss that keeps the similarities between images that a pretrained network had before fine-tuning.

A margin loss separates the classes of the training set only, so images of other kinds may end up close together. This
loss compares the similarities within a batch: those of the starting network's features and those of the embeddings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def preserve_loss(embedding_BD: Tensor, start_BF: Tensor, *, temperature: float) -> Tensor:
    """KL divergence between two similarity distributions of each image: by the starting features and by the embeddings.

    A distribution is the softmax, at `temperature`, of an image's cosines to the other images of the batch. Features
    (B, F) are centred on the batch mean first: features after a ReLU share a direction, which makes all cosines large.
    Returns the mean over the batch, computed in float32; 0 for fewer than three images.
    """
    embedding_BD, start_BF = embedding_BD.float(), start_BF.float()
    if len(embedding_BD) < 3:  # a single neighbour has all of the probability
        return 0.0 * embedding_BD.sum()
    centred_BF = F.normalize(start_BF - start_BF.mean(dim=0), dim=1)
    expected_BB = log_neighbours(centred_BF, temperature)
    found_BB = log_neighbours(F.normalize(embedding_BD, dim=1), temperature)
    return F.kl_div(found_BB, expected_BB, reduction="batchmean", log_target=True)


def log_neighbours(unit_BD: Tensor, temperature: float) -> Tensor:
    """Logarithm of the distribution of each unit vector's similarity over the others, (B, B - 1)."""
    num = len(unit_BD)
    others_BB = ~torch.eye(num, dtype=torch.bool, device=unit_BD.device)
    cosine_BB = (unit_BD @ unit_BD.T)[others_BB].view(num, num - 1)
    return (cosine_BB / temperature).log_softmax(dim=1)
