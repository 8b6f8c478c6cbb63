"""How a run computes on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeembed.student.zoo import build_student
from edgeembed.training.device import Float32Forward, PointwiseConv2d, replace_slow_convolutions


# The second network has convolutions of timm's class `Conv2dSame` too.
@pytest.mark.parametrize("student", ["mobilenetv4_s", "tf_efficientnet_lite0"])
def test_convolutions_keep_from_slow_kernels_on_a_cpu(student: str) -> None:
    torch.manual_seed(0)
    model = build_student(student, weights="none", size_px=64, dim=8).eval()
    image = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        before = model(image)
        replace_slow_convolutions(model, "cuda")
        assert not any(isinstance(module, Float32Forward | PointwiseConv2d) for module in model.modules())
        replace_slow_convolutions(model, "cpu")
        torch.testing.assert_close(model(image), before, atol=1e-6, rtol=1e-5)
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            depthwise = module.groups == module.in_channels > 1
            assert isinstance(module, Float32Forward) == depthwise
            assert isinstance(module, PointwiseConv2d) == (module.kernel_size == (1, 1))
            module.register_forward_hook(lambda _m, _i, output, depthwise=depthwise: seen[depthwise].add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(image).sum().backward()
    assert seen == {True: {torch.float32}, False: {torch.bfloat16}}


def test_a_strided_pointwise_convolution_is_the_same_without_its_stride() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 1, stride=2, bias=False), nn.Conv2d(16, 8, 1, stride=(1, 2)))
    images = [torch.randn(4, 3, height, 80) for height in (80, 33)]
    expected = [model(image) for image in images]
    replace_slow_convolutions(model.to(memory_format=torch.channels_last), "cpu")
    assert all(isinstance(module, PointwiseConv2d) for module in model)
    for image, wanted in zip(images, expected, strict=True):
        found = model(image.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
        found.square().sum().backward()
