"""A network with random weights: the baseline that a trained network of the same architecture is compared with.

Random convolutions keep colour and texture, which is often enough to find some images of the same object: what training
has added is a network's mAP above this baseline's, not above zero.
"""

from __future__ import annotations

import logging

import torch

from edgeembed.model_json import NetworkDescription
from edgeembed.network.model import Network, network_from_description

log = logging.getLogger(__name__)

SEED = 0
MAX_PARAMS = 500_000_000
"""A larger network would need gigabytes of memory beside the trained one."""


def untrained_network(description: NetworkDescription) -> Network | None:
    """Builds an architecture with random weights, the same ones in every call, in evaluation mode.

    Returns None if it has more than `MAX_PARAMS` parameters. The state of torch's random generators is kept.
    """
    if (params := description.architecture.params or 0) > MAX_PARAMS:
        log.info("not compared with an untrained network of its kind: %.3g parameters", params)
        return None
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(SEED)
        model = network_from_description(description)
    return model.eval()
