"""Views: functions of (seed, image, view) alone, the same crop at every size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeembed.config import AugmentSection, MixSection, validate
from edgeembed.data.augment import ViewParameters, draw_views, uniforms
from edgeembed.data.loader import load_canvas
from edgeembed.data.views import are_mixed, mix_views, render_on_cpu, render_on_device, render_views
from edgeembed.device.images import load_pixels, squash
from edgeembed.errors import UserError

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


def select(views: ViewParameters, rows: list[int]) -> dict[str, torch.Tensor]:
    return {name: value[rows] for name, value in vars(views).items() if isinstance(value, torch.Tensor)}


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


def test_cutmix_pastes_the_next_image_and_returns_its_share() -> None:
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


def test_mixup_blends_by_the_share_that_it_returns() -> None:
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


def sides(section: AugmentSection, num: int = 20_000) -> np.ndarray:
    """Width and height of each view as multiples of the image's, (num, 2)."""
    affine_B23 = draw_views(section, seed=3, image_B=np.arange(num), view=0).affine_B23.numpy()
    return np.linalg.norm(affine_B23[:, :, :2], axis=1)


def test_a_crop_side_above_1_zooms_out_in_the_same_way_for_both_axes() -> None:
    side_N2 = sides(AugmentSection(crop_side=(0.8, 1.2)))
    assert side_N2.min() == pytest.approx(0.8, abs=1e-3)
    assert side_N2.max() == pytest.approx(1.2, abs=1e-3)
    assert np.allclose(side_N2[:, 0], side_N2[:, 1])
    assert side_N2.mean() == pytest.approx(1.0, abs=0.005)  # uniform in the side, not in the area


def test_crop_sides_can_be_drawn_for_each_axis() -> None:
    side_N2 = sides(AugmentSection(crop_side=(0.7, 1.3), crop_per_axis=True))
    assert side_N2.min(axis=0) == pytest.approx([0.7, 0.7], abs=1e-3)
    assert side_N2.max(axis=0) == pytest.approx([1.3, 1.3], abs=1e-3)
    assert abs(np.corrcoef(side_N2.T)[0, 1]) < 0.03


def test_equally_likely_crops_and_rotations_come_together() -> None:
    section = AugmentSection(
        crop_side=(0.8, 0.9), crop_probability=0.5, rotation_degrees=10, affine_probability=0.5, flip_probability=0.0
    )
    affine_B23 = draw_views(section, seed=3, image_B=np.arange(4000), view=0).affine_B23.numpy()
    cropped = np.linalg.norm(affine_B23[:, :, :2], axis=1)[:, 0] < 0.95
    turned = np.abs(affine_B23[:, 1, 0]) > 1e-6
    assert cropped.mean() == pytest.approx(0.5, abs=0.03)
    assert np.array_equal(cropped, turned)


def test_shears_can_be_rarer_than_crops() -> None:
    section = AugmentSection(crop_side=(0.7, 0.9), shear_degrees=4, affine_probability=0.5, flip_probability=0.0)
    affine_B23 = draw_views(section, seed=3, image_B=np.arange(4000), view=0).affine_B23.numpy()
    assert (affine_B23[:, 0, 0] < 0.95).all()
    assert (np.abs(affine_B23[:, 0, 1]) > 1e-6).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("render", [render_on_cpu, render_on_device])
@pytest.mark.parametrize(("border", "darkest"), [("black", 0), ("reflect", 255)])
def test_the_border_of_a_view_is_black_or_reflected(
    render: Callable[..., torch.Tensor], border: str, darkest: int
) -> None:
    section = AugmentSection.model_validate(
        {"crop_side": [1.5, 1.5], "border": border, "flip_probability": 0.0, "crop_per_axis": True}
    )
    white = torch.full((4, 3, 60, 60), 255, dtype=torch.uint8)
    view = render(white, draw_views(section, seed=0, image_B=np.arange(4), view=0), (48, 48))
    assert float(view.min()) == pytest.approx(darkest, abs=0.01)
    inside_share = (view > 127).float().mean().item()
    assert inside_share == (pytest.approx(1 / 1.5**2, abs=0.03) if border == "black" else 1.0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"crop_side": [0.8, 1.2], "scale": [0.5, 1.0]}, "replaces augment.scale"),
        ({"crop_side": [0.8, 1.2], "aspect": [0.5, 1.0]}, "replaces augment.scale and augment.aspect"),
        ({"crop_side": [1.2, 0.8]}, "two sides above 0, the smaller first"),
        ({"crop_side": [0.0, 0.8]}, "two sides above 0"),
    ],
)
def test_crop_sides_that_cannot_be_used_are_refused(keys: dict[str, list[float]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(AugmentSection, keys, source="augment")


IDENTITY = AugmentSection(flip_probability=0.0)


@pytest.mark.parametrize("render", [render_on_cpu, render_on_device])
@pytest.mark.parametrize("view_px", [(144, 144), (96, 160), (360, 120), (360, 360)])
def test_a_smaller_view_is_antialiased_as_evaluation_resizes(
    render: Callable[..., torch.Tensor], view_px: tuple[int, int]
) -> None:
    """A fine checkerboard becomes grey; without antialiasing it becomes a moire of black and white."""
    row, column = np.mgrid[:360, :360]
    board_HWC = np.repeat((((row + column) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    expected_HWC = squash(Image.fromarray(board_HWC), *view_px)
    canvas = torch.from_numpy(board_HWC).permute(2, 0, 1)[None]
    view = render(canvas, draw_views(IDENTITY, seed=0, image_B=np.arange(1), view=0), view_px)
    found_HWC = view[0].permute(1, 2, 0).float().numpy()
    assert np.abs(found_HWC - np.asarray(expected_HWC, np.float32)).max() <= 2.0


@pytest.mark.parametrize("render", [render_on_cpu, render_on_device])
def test_crops_of_half_the_image_at_half_its_size_lose_nothing(render: Callable[..., torch.Tensor]) -> None:
    section = AugmentSection(crop_side=(0.5, 0.5), flip_probability=0.0)
    canvas = squares(6, 80)
    views = draw_views(section, seed=2, image_B=np.arange(6), view=0)
    sharp = render(canvas, views, (40, 40)).float()
    left_top = ((views.affine_B23[:, :, 2] + 1 - 0.5) / 2 * 80).round().long()
    for image, (left, top) in enumerate(left_top.tolist()):
        cut = canvas[image, :, top : top + 40, left : left + 40].float()
        assert (sharp[image] - cut).abs().mean() < 6.0  # off by less than half a pixel


def test_each_image_of_a_batch_may_have_another_view_number() -> None:
    image_B, view_B = np.array([4, 4, 7]), np.array([0, 1, 1])
    together = uniforms(3, image_B, view_B, 5)
    for at, (image, view) in enumerate(zip(image_B, view_B, strict=True)):
        assert np.array_equal(together[at], uniforms(3, np.array([image]), int(view), 5)[0])
    drawn = draw_views(STRONG, seed=3, image_B=image_B, view=view_B)
    assert torch.equal(drawn.affine_B23[2], draw_views(STRONG, seed=3, image_B=np.array([7]), view=1).affine_B23[0])
    assert not torch.equal(drawn.affine_B23[0], drawn.affine_B23[1])


@pytest.mark.parametrize("view_px", [96, 144])
def test_an_unchanged_view_of_a_photograph_embeds_as_evaluation_embeds_it(real_data: Path, view_px: int) -> None:
    """Of a trained student, training views show what use will show: p1 .9985 at 144 px, .978 without antialiasing."""
    from edgeembed.device.embedder import Embedder

    embedder = Embedder()
    files = sorted(str(path) for path in (real_data / "grocery").rglob("*.jpg"))[::60]
    canvases = torch.stack([torch.from_numpy(load_canvas(file, 360, 360, reduced=True)) for file in files])
    views = draw_views(IDENTITY, seed=0, image_B=np.arange(len(files)), view=0)
    shown_BCHW = render_views(canvases.permute(0, 3, 1, 2), views, view_px)
    evaluated = [load_pixels(file, view_px, view_px) for file in files]

    def embed(images: list[np.ndarray]) -> np.ndarray:
        return embedder.embed([squash(Image.fromarray(image), 144, 144) for image in images])

    shown_BD = embed(list(shown_BCHW.permute(0, 2, 3, 1).to(torch.uint8).numpy()))
    cosine_B = (shown_BD * embed(evaluated)).sum(axis=1)
    assert len(files) > 80
    assert np.percentile(cosine_B, 1) >= 0.995
