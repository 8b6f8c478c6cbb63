"""How a run computes on a CPU."""

from __future__ import annotations

import torch
from torch import nn

from edgeembed.student.zoo import build_student
from edgeembed.teacher.device import PreciseConv2d, keep_depthwise_precise


def test_depthwise_convolutions_stay_in_float32_on_a_cpu() -> None:
    torch.manual_seed(0)
    model = build_student("mobilenetv4_s", weights="none", size_px=64, dim=8).eval()
    image = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        before = model(image)
        keep_depthwise_precise(model, "cuda")
        assert not any(isinstance(module, PreciseConv2d) for module in model.modules())
        keep_depthwise_precise(model, "cpu")
        assert torch.equal(model(image), before)
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            depthwise = module.groups == module.in_channels > 1
            assert isinstance(module, PreciseConv2d) == depthwise
            module.register_forward_hook(lambda _m, _i, output, depthwise=depthwise: seen[depthwise].add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(image).sum().backward()
    assert seen == {True: {torch.float32}, False: {torch.bfloat16}}
