"""Input sizes that a network does not take are told before it is built, with sizes that it takes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeembed.errors import UserError
from edgeembed.network.backbone import build_backbone, require_input_size
from edgeembed.student.zoo import require_student_size
from tests.conftest import TINY, TINY_STUDENT, Outcome, as_options

Run = Callable[..., Outcome]

REFUSED = [
    ("vit_tiny_patch16_224", 100, [96, 112, 224]),  # a multiple of its patches
    ("vit_small_patch14_dinov2", 224 - 7, [210, 224, 518]),
    ("crossvit_tiny_240", 224, [240]),  # made for one size
    ("levit_128s", 100, [96, 128, 224]),  # tables of distances for one size
    ("halonet26t", 224, [256]),  # blocks of a window
    ("vgg11", 16, [32, 224]),  # a smallest size
    ("ViT-S-32-alt", 12, [32, 224]),
]


@pytest.mark.parametrize(("name", "size_px", "taken"), REFUSED)
def test_a_size_is_refused_with_sizes_that_the_network_takes(name: str, size_px: int, taken: list[int]) -> None:
    sizes = " or ".join(map(str, taken))
    with pytest.raises(UserError) as caught:
        require_input_size(name, size_px)
    assert str(caught.value) == f"image.size_px = {size_px}: {name} does not take images of this size: give {sizes}"
    for size in taken:
        require_input_size(name, size)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv4_conv_small", "fastvit_t8", "swin_tiny_patch4_window7_224"])
def test_sizes_of_flexible_networks_are_taken(name: str) -> None:
    for size_px in (64, 100, 224, 250):
        require_input_size(name, size_px)


def test_a_network_that_is_built_all_the_same_says_so_too() -> None:
    with pytest.raises(UserError, match=r"image.size_px = 100: vit_tiny_patch16_224 does not take .* give 96 or 112"):
        build_backbone("vit_tiny_patch16_224", weights="none", size_px=100)


def test_tables_that_are_read_past_their_end_are_told_when_the_network_is_built() -> None:
    with pytest.raises(UserError, match=r"image.size_px = 100: mvitv2_tiny fails .* give 224, its default"):
        build_backbone("mvitv2_tiny", weights="none", size_px=100)


def test_a_check_takes_no_weights_and_little_time() -> None:
    started = time.process_time()
    require_input_size("ViT-H-14", 224)
    assert time.process_time() - started < 20  # 632 M weights are drawn in a minute


def test_every_command_refuses_before_it_works(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, tiny_student: Path, tmp_path: Path
) -> None:
    size = ["--set", "image.size_px=100"]
    vit = ["--set", "student.name=test_vit"]
    out = tmp_path / "run"
    told = "image.size_px = 100: test_vit does not take images of this size: give 96 or 112 or 160"
    outcomes = [
        edgeembed("students", "test_vit", "--size-px", 100, "--no-latency"),
        edgeembed(
            *["teacher-train", "--data", tiny_data, "--recipe", "quickstart", "--out", out, *as_options(TINY), *size],
            *["--set", "backbone.name=test_vit"],
        ),
        edgeembed(
            *["distill", "--data", tiny_data, "--teacher", tiny_teacher, "--recipe", "quickstart", "--out", out],
            *[*as_options(TINY_STUDENT), *size, *vit],
        ),
    ]
    for outcome in outcomes:
        assert (outcome.code, outcome.stderr.strip().splitlines()[-1]) == (2, f"error: {told}")
    assert not (out / "model.json").exists()

    facts = json.loads((tiny_student / "model.json").read_text())
    facts["architecture"]["backbone"], facts["input"]["height"] = "test_vit", 100
    (tmp_path / "edited").mkdir()
    (tmp_path / "edited/model.json").write_text(json.dumps(facts))
    exported = edgeembed("export", tmp_path / "edited", "--out", tmp_path / "bundle")
    assert (exported.code, exported.stderr.strip().splitlines()[-1]) == (2, f"error: {told}")


@pytest.mark.parametrize("size_px", [0, -1, 15, 4096])
def test_sizes_out_of_range_are_refused(edgeembed: Run, tiny_data: Path, size_px: int) -> None:
    for command in (
        ["students", "resnet18", "--size-px", size_px],
        ["teacher-train", "--data", tiny_data, "--set", f"image.size_px={size_px}"],
        ["distill", "--student", "resnet18", "--set", f"image.size_px={size_px}"],
    ):
        outcome = edgeembed(*command)
        assert outcome.code == 2
        assert outcome.stderr.count("\n") == 1
        assert "size" in outcome.stderr


def test_the_alias_of_a_family_of_one_size_is_told() -> None:
    with pytest.raises(UserError, match="efficientformerv2_s0 takes 224 only"):
        require_student_size("efficientformerv2_s0", 128)
