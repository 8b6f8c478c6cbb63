"""Counts the multiply-accumulates of a network."""

from __future__ import annotations

import contextlib

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from edgeembed.network.eval_mode import eval_mode
from edgeembed.network.model import Network, num_params

LARGE_MODEL_PARAMS = 100_000_000
"""From here on a network is not run to be counted: that takes seconds and gigabytes, where shapes alone say as much."""


def count_macs(model: Network) -> int:
    """Returns the multiply-accumulates for one image in convolutions, linear layers and attention.

    The image has the network's own input size. Averaging over mirrored images and scales is counted too.
    """
    counter = FlopCounterMode(display=False)
    # Fake tensors have shapes and no values. Small networks run faster than their shapes are worked out.
    is_large = num_params(model) > LARGE_MODEL_PARAMS
    fake = FakeTensorMode(allow_non_fake_inputs=True) if is_large else contextlib.nullcontext()
    device = next(model.parameters()).device
    with eval_mode(model), torch.no_grad(), fake, counter:
        model(torch.zeros(1, 3, model.size_px, model.size_px, device=device))
    # The counter counts a multiplication and an addition separately.
    return counter.get_total_flops() // 2
