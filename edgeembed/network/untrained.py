"""A network before it has learnt anything: the same architecture with random weights, to compare with.

Random convolutions keep colour and texture, which is often enough to find some images of a thing again: what a network
has learnt shows in its mAP above this one's, not above zero.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from edgeembed.network.model import EmbeddingModel, EnsembleModel, Network

log = logging.getLogger(__name__)

SEED = 0
MOST_PARAMS = 500_000_000
"""A larger network would take gigabytes of memory beside the one that was trained."""


def untrained_network(facts: dict[str, Any]) -> Network | None:
    """The architecture that model.json describes with random weights, always the same ones, in evaluation mode.

    None for one of more than `MOST_PARAMS`. The caller's random numbers go on as if nothing had been drawn.
    """
    architecture = facts["architecture"]
    if (params := int(architecture.get("params") or 0)) > MOST_PARAMS:
        log.info("not compared with an untrained network of its kind: %.3g parameters", params)
        return None
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(SEED)
        kind = EnsembleModel if "members" in architecture else EmbeddingModel
        model: Network = kind.from_facts(facts)
    return model.eval()
