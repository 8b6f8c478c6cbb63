"""Views: functions of (seed, image, view) alone, the same crop at every size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeembed.config import AugmentSection, MixSection
from edgeembed.data.augment import Views, draw_views, uniforms
from edgeembed.data.views import are_mixed, mix_views, render_on_device, render_views

STRONG = AugmentSection(
    scale=(0.4, 1.0),
    aspect=(0.8, 1.25),
    rotation_degrees=20,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    drop_square_probability=0.5,
)


def squares(num: int, side: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (num, 3, 5, 5), generator=generator).float()
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear").to(torch.uint8)


def select(views: Views, rows: list[int]) -> dict[str, torch.Tensor]:
    return {name: value[rows] for name, value in vars(views).items()}


def test_numbers_are_uniform_and_independent_of_the_batch() -> None:
    u = uniforms(3, np.arange(20_000), 5, 8)
    assert u.min() >= 0.0
    assert u.max() < 1.0
    assert np.abs(u.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(u.T) - np.eye(8)).max() < 0.03
    assert np.array_equal(u[[7, 3]], uniforms(3, np.array([7, 3]), 5, 8))
    assert not np.array_equal(u, uniforms(3, np.arange(20_000), 6, 8))
    assert not np.array_equal(u, uniforms(4, np.arange(20_000), 5, 8))


def test_a_view_does_not_depend_on_its_batch() -> None:
    together = draw_views(STRONG, seed=1, image_B=np.arange(6), view=2)
    alone = draw_views(STRONG, seed=1, image_B=np.array([4]), view=2)
    for name, value in select(together, [4]).items():
        assert torch.equal(value, getattr(alone, name)), name
    canvas = squares(6)
    assert torch.equal(render_views(canvas, together, 24)[4:5], render_views(canvas[4:5], alone, 24))


def test_two_sizes_show_the_same_crop() -> None:
    views = draw_views(STRONG, seed=1, image_B=np.arange(8), view=0)
    small = render_views(squares(8), views, 16).float()
    large = torch.nn.functional.avg_pool2d(render_views(squares(8), views, 64).float(), 4)
    assert (small - large).abs().mean() < 6.0


def test_without_augmentation_the_image_is_only_resized() -> None:
    plain = AugmentSection(flip_probability=0.0)
    canvas = squares(3)
    image = render_views(canvas, draw_views(plain, seed=0, image_B=np.arange(3), view=0), 40)
    assert torch.equal(image, canvas)


def test_flip_mirrors_and_values_stay_in_range() -> None:
    canvas = squares(3)
    flipped = draw_views(AugmentSection(flip_probability=1.0), seed=0, image_B=np.arange(3), view=0)
    assert torch.equal(render_views(canvas, flipped, 40), canvas.flip(3))


@pytest.mark.parametrize("shape_px", [(32, 32), (80, 48)])
def test_cpu_and_device_render_the_same_pixels(shape_px: tuple[int, int]) -> None:
    smooth = torch.nn.functional.interpolate(squares(8)[:, :, :6, :6].float(), (60, 50), mode="bicubic").clamp(0, 255)
    canvas = smooth.to(torch.uint8).contiguous(memory_format=torch.channels_last)
    views = draw_views(STRONG, seed=9, image_B=np.arange(8), view=1)
    on_cpu = render_views(canvas, views, shape_px)
    assert on_cpu.shape == (8, 3, *shape_px)
    assert on_cpu.dtype == torch.uint8
    on_device = render_on_device(canvas, views, shape_px)
    assert on_device.min() >= 0.0
    assert on_device.max() <= 255.0
    difference = (on_cpu.float() - on_device).abs()
    assert difference.mean() < 0.6
    assert difference.quantile(0.999) < 4.0


def test_a_dropped_square_has_the_side_always() -> None:
    section = AugmentSection(flip_probability=0.0, drop_square_probability=1.0, drop_square_side=(0.25, 0.25))
    white = torch.full((4, 3, 40, 40), 255, dtype=torch.uint8)
    image = render_views(white, draw_views(section, seed=0, image_B=np.arange(4), view=0), 40)
    assert (image == 0).float().mean() == pytest.approx(0.0625, abs=0.01)


def test_cutmix_pastes_the_next_image_and_says_how_much() -> None:
    section = MixSection(cutmix_probability=0.5, cutmix_side=(0.5, 0.5))
    image = torch.arange(16.0).view(16, 1, 1, 1).expand(16, 3, 20, 20)
    mixed, share = mix_views(image, image.roll(-1, 0), section, seed=3, image_B=np.arange(16), view=1)
    assert np.array_equal(share.numpy() > 0, are_mixed(section, seed=3, image_B=np.arange(16), view=1))
    assert 2 < int((share > 0).sum()) < 14
    for i in range(16):
        changed = mixed[i] != image[i]
        assert changed.float().mean().item() == pytest.approx(share[i].item())
        assert set(mixed[i].unique().tolist()) <= {float(i), float((i + 1) % 16)}
    assert share.max().item() == pytest.approx(0.25, abs=0.03)
    alone, _ = mix_views(image[:1], image[1:2], section, seed=3, image_B=np.arange(1), view=1)
    assert torch.equal(alone, mixed[:1])


def test_mixup_blends_by_the_share_that_it_tells() -> None:
    section = MixSection(cutmix_probability=0.3, mixup_probability=0.5, mixup_share=(0.2, 0.4))
    image = torch.randint(0, 255, (32, 3, 8, 8), dtype=torch.uint8)
    other = image.roll(-1, 0)
    mixed, share = mix_views(image, other, section, seed=0, image_B=np.arange(32), view=0)
    assert mixed.dtype == torch.uint8
    blended = 0
    for i in np.flatnonzero(are_mixed(section, seed=0, image_B=np.arange(32), view=0)):
        expected = torch.lerp(image[i].float(), other[i].float(), share[i])
        blended += int((mixed[i].float() - expected).abs().max() <= 0.5)
    assert 8 < blended < 24
    untouched = share == 0
    assert torch.equal(mixed[untouched], image[untouched])
    as_float, _ = mix_views(image.float(), other.float(), section, seed=0, image_B=np.arange(32), view=0)
    assert (as_float - mixed).abs().max() <= 0.5


def test_an_image_is_mixed_in_one_way_only() -> None:
    with pytest.raises(ValueError, match="at most 1"):
        MixSection(cutmix_probability=0.6, mixup_probability=0.5)
