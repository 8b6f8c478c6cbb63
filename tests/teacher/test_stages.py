"""Stages: what they may change, runs of the three bundled systems, resumption inside a later stage, continued runs."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgeembed.config import load_recipe
from edgeembed.data.manifest import read_manifest
from edgeembed.errors import UserError
from edgeembed.network.model import build_model
from edgeembed.network.model_files import load_model
from edgeembed.network.tensor_files import iterate_tensors
from edgeembed.run_folder import RunFolder
from edgeembed.teacher.margin import ClassCentres
from edgeembed.teacher.networks import freeze
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.teacher.stages import balanced, canvas_shapes, plan_stages
from edgeembed.teacher.train import train_teacher
from tests.conftest import TINY, Outcome, as_options

Run = Callable[..., Outcome]


def write_recipe(folder: Path, text: str) -> str:
    (folder / "r.yaml").write_text(text)
    return str(folder / "r.yaml")


def recipe_of(folder: Path, text: str, *overrides: str) -> TeacherRecipe:
    return load_recipe(TeacherRecipe, kind="teacher", name=write_recipe(folder, text), overrides=overrides)


TWO_STAGES = """
train: {epochs: 3, batch_size: 4}
stages:
  - {name: first, backbone: {frozen: true}}
  - {name: second, train: {epochs: 1, batch_size: 2}, optim: {lr: 0.5}, image: {size_px: 48}}
"""


def test_a_stage_is_the_recipe_with_some_keys_changed(tmp_path: Path) -> None:
    (first, one), (second, two) = recipe_of(tmp_path, TWO_STAGES, "stages.1.optim.lr=0.25").resolve_stages()
    assert (first, second) == ("first", "second")
    assert (one.backbone.frozen, two.backbone.frozen) == (True, False)
    assert (one.train.epochs, two.train.epochs) == (3, 1)
    assert (one.image.size_px, two.image.size_px) == (224, 48)
    assert two.optim.lr == 0.25


def test_stages_follow_each_other_and_the_steps_of_a_run_bound_them(tmp_path: Path) -> None:
    files, classes = [f"{i}.png" for i in range(8)], np.zeros(8, np.int64)
    stages = plan_stages(recipe_of(tmp_path, TWO_STAGES), files, classes, np.ones(8, np.int64), np.arange(8))
    assert [(stage.begin, stage.end) for stage in stages] == [(0, 6), (6, 10)]
    assert [stage.order.epoch(0) for stage in stages] == [0, 3]
    cut = plan_stages(
        recipe_of(tmp_path, TWO_STAGES, "train.max_steps=5"), files, classes, np.ones(8, np.int64), np.arange(8)
    )
    assert [(stage.begin, stage.end) for stage in cut] == [(0, 5)]


@pytest.mark.parametrize("repeats", [(3, 1, 2), (1, 3, 1), (2, 2, 2), (5, 1, 1)])
def test_no_view_of_an_image_comes_twice_however_often_each_stage_visits_it(
    tmp_path: Path, repeats: tuple[int, ...]
) -> None:
    stages = "".join(f"  - {{sampling: {{repeat_to: {4 * repeat}}}}}\n" for repeat in repeats)
    recipe = recipe_of(tmp_path, f"train: {{epochs: 2, batch_size: 2}}\nstages:\n{stages}")
    class_of_image = np.repeat([0, 1], 4)
    planned = plan_stages(recipe, ["x.png"] * 8, class_of_image, np.ones(8, np.int64), np.arange(8))
    seen = [
        (image, view)
        for stage in planned
        for image_B, view_B in stage.samples(stage.begin)
        for image, view in zip(image_B.tolist(), view_B.tolist(), strict=True)
    ]
    views = range(2 * sum(repeats))
    assert sorted(seen) == [(image, view) for image in range(8) for view in views]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("{name: x, optim: {lrr: 1}}", "stage 'x': unknown key 'optim.lrr'.*did you mean 'optim.lr'"),
        ("{name: x, neck: {dim: 8}}", "stage 'x': 'neck.dim' cannot differ between stages: set it outside the stages"),
        ("{optim: {lr: fast}}", "stage '1': optim.lr = 'fast'"),
    ],
)
def test_a_mistake_in_a_stage_is_named_when_the_recipe_is_read(tmp_path: Path, stage: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe_of(tmp_path, f"stages:\n  - {stage}\n")


def test_an_epoch_visits_at_most_a_cap_and_repeats_small_classes() -> None:
    classes = np.array([0] * 10 + [1] * 2 + [2] * 4)
    visits = balanced(np.arange(16), classes, cap=5, repeat_to=4, seed=0)
    assert np.bincount(classes[visits]).tolist() == [5, 4, 4]
    assert set(visits[classes[visits] == 1]) == {10, 11}
    assert np.array_equal(visits, balanced(np.arange(16), classes, cap=5, repeat_to=4, seed=0))


SMALL: dict[str, list[str]] = {
    "vit_h14": ["backbone.name=test_vit", "image.size_px=32", "stages.0.train.epochs=1"],
    "eee511": ["backbone.name=test_vit", "image.size_px=32", "stages.0.train.epochs=1", "stages.1.train.epochs=2"],
    "landmark_2019": [
        "backbone.name=test_resnet",
        "neck.dim=16",
        "image.size_px=32",
        "stages.0.train.epochs=1",
        "stages.1.train.epochs=1",
        "stages.2.image.size_px=64",
    ],
}


@pytest.mark.parametrize("name", SMALL)
def test_the_three_systems_run_all_their_stages(
    edgeembed: Run, tiny_data: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = [*SMALL[name], "backbone.weights=none", "train.batch_size=8", "train.workers=0"]
    overrides += ["train.grad_checkpointing=false"] if name != "vit_h14" else []
    command = ["teacher-train", "--data", tiny_data, "--recipe", name, "--out", tmp_path / "run"]
    with caplog.at_level(logging.INFO):
        outcome = edgeembed(*command, *as_options(overrides), "--json")
    assert outcome.code == 0, outcome.stderr
    result = json.loads(outcome.stdout)
    stages = load_recipe(TeacherRecipe, kind="teacher", name=name).stages
    for stage in stages:
        assert f"stage {stage['name']}: steps" in caplog.text
    assert result["scores"]["queries"] > 0
    model, _ = load_model(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "model.json").read_text())["inference"] == {
        "flip": name == "vit_h14",
        "scales": [0.75, 1.0, 1.25] if "land" in name else [1.0],
    }
    assert model.keep_aspect == ("landmark" in name)
    assert "\nneck:\n" in edgeembed("recipes", "show", name).stdout


STAGED = """
backbone: {name: test_vit, weights: none}
neck: {dropout: 0.2, dim: 16}
head: {sample_rate: 0.5, centres_per_class: 2}
image: {size_px: 32}
augment: {scale: [0.6, 1.0]}
optim: {lr: 1.0e-3, layer_decay: 0.8}
train: {batch_size: 8, precision: fp32, workers: 0, checkpoint_every_steps: 1, ema_decay: 0.9}
stages:
  - {name: small, train: {epochs: 1}}
  - {name: large, train: {epochs: 4}, image: {size_px: 48, patch_stride: 12}, neck: {frozen: true}}
"""


def test_a_run_killed_in_its_second_stage_resumes_to_the_same_bits(tiny_data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, STAGED)
    command = [sys.executable, "-m", "edgeembed", "teacher-train", "--data", str(tiny_data), "--recipe", recipe]
    command += as_options(["eval.every_steps=0"])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True)
    steps = json.loads((whole / "eval.json").read_text())["steps"]
    first_stage = steps // 5
    process = subprocess.Popen([*command, "--out", str(killed)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while RunFolder(path=killed).last_step() <= first_stage and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not RunFolder(path=killed).finished
    assert RunFolder(path=killed).last_step() < steps
    subprocess.run([*command, "--out", str(killed), "--resume"], check=True, capture_output=True)
    for name in ("model.safetensors", "head.safetensors"):
        expected, found = (dict(iterate_tensors(run / name)) for run in (whole, killed))
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            assert torch.equal(tensor, found[key]), key


def test_a_run_that_stopped_between_stages_goes_on_with_the_next(tiny_data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, STAGED, "eval.every_steps=0")
    manifest, whole, stopped = read_manifest(tiny_data), tmp_path / "whole", RunFolder(path=tmp_path / "stopped")
    train_teacher(recipe, manifest, RunFolder(path=whole))
    train_teacher(recipe, manifest, stopped)
    keep = json.loads((whole / "eval.json").read_text())["steps"] // 5
    for name in ("model.json", "eval.json"):
        (stopped.path / name).unlink()
    again = RunFolder(path=tmp_path / "again")
    part = recipe_of(tmp_path, STAGED, "eval.every_steps=0", f"train.max_steps={keep}")
    train_teacher(part, manifest, again)
    for old in stopped.checkpoints():
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    again.checkpoints()[-1].rename(stopped.path / "checkpoints" / f"step-{keep:08d}")
    train_teacher(recipe, manifest, stopped, resume=True)
    expected, found = (dict(iterate_tensors(run / "model.safetensors")) for run in (whole, stopped.path))
    # The first stage's own rates depend on its length, which is the same here: the runs agree.
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())


def test_what_is_frozen_computes_as_in_evaluation() -> None:
    model, centres = build_model("test_resnet", weights="none", size_px=32, dim=8, dropout=0.2), ClassCentres(3, 8)
    recipe = TeacherRecipe.model_validate({"backbone": {"frozen": True}, "head": {"frozen": True}})
    freeze(recipe, model, centres)
    assert [model.training, model.backbone.training, model.neck.training] == [True, False, True]
    assert not any(parameter.requires_grad for parameter in (*model.backbone.parameters(), *centres.parameters()))
    freeze(TeacherRecipe.model_validate({"backbone": {"frozen_batch_norm": True}}), model, centres)
    norms = [module for module in model.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert model.backbone.training


@pytest.fixture(scope="module")
def fewer_data(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """The tiny data without its last classes, so that the whole of it has new ones."""
    manifest = read_manifest(tiny_data)
    first = manifest.class_names(manifest.rows("train"))[:-2]
    names = zip(manifest.domain, manifest.label, strict=True)
    rows = [row for row, name in enumerate(names) if name in first or manifest.split[row] != "train"]
    folder = tmp_path_factory.mktemp("fewer")
    lines = ["path,label,domain,split,role"]
    for row in rows:
        values = (manifest.files[row], manifest.label[row], manifest.domain[row], manifest.split[row])
        lines.append(",".join(str(value) for value in values) + f",{manifest.role[row] or ''}")
    (folder / "m.csv").write_text("\n".join(lines) + "\n")
    return folder / "m.csv"


@pytest.mark.parametrize("frozen", [True, False])
def test_a_finished_teacher_learns_new_classes(
    edgeembed: Run,
    tiny_data: Path,
    fewer_data: Path,
    tmp_path: Path,
    frozen: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    recipe: list[Any] = ["--recipe", "quickstart", *as_options([*TINY, "eval.every_steps=0"])]
    assert edgeembed("teacher-train", "--data", fewer_data, *recipe, "--out", before).code == 0
    keys = ["backbone.frozen=true", "neck.frozen=true"] if frozen else []
    with caplog.at_level(logging.INFO):
        outcome = edgeembed(
            "teacher-train", "--data", tiny_data, *recipe, "--from", before, *as_options(keys), "--out", after
        )
    assert outcome.code == 0, outcome.stderr
    assert "2 are new" in caplog.text
    old, new = (load_model(run)[1].space_id for run in (before, after))
    assert (old == new) == frozen
    assert (f"space {old} of {before} is kept" if frozen else f"space {old} becomes {new}") in caplog.text
    centres = [len(dict(iterate_tensors(run / "head.safetensors"))["centres"]) for run in (before, after)]
    assert centres[1] == centres[0] + 2


def test_a_teacher_of_another_make_cannot_be_continued(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    command = ["teacher-train", "--data", tiny_data, "--recipe", "quickstart", "--from", tiny_teacher]
    outcome = edgeembed(*command, "--out", tmp_path / "run", *as_options([*TINY, "neck.dim=32"]))
    assert outcome.code == 2
    assert "neck.dim = 32" in outcome.stderr
    assert "was trained with 64" in outcome.stderr


def test_shapes_that_few_images_have_become_squares(tmp_path: Path) -> None:
    for number in range(9):
        size = (60, 40) if number < 5 else (40, 60) if number < 8 else (30, 30)
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(9)]
    recipe = TeacherRecipe.model_validate(
        {"image": {"keep_aspect": True, "size_px": 64, "canvas_factor": 1.0}, "train": {"batch_size": 4}}
    )
    shapes = canvas_shapes(recipe, files).tolist()
    assert shapes[:5] == [[48, 80]] * 5
    assert shapes[5:] == [[64, 64]] * 4
    (stage,) = plan_stages(recipe, files, np.zeros(9, np.int64), np.ones(9, np.int64), np.arange(9))
    assert stage.view_shape(0, (48, 80)) == (48, 80)
    assert all(len({tuple(shapes[image]) for image in batch}) == 1 for batch, _ in stage.samples(0))


@pytest.mark.parametrize(("batch_size", "lone"), [(4, [80, 48]), (1, [64, 64])])
def test_a_lone_square_takes_the_shape_of_most_images(tmp_path: Path, batch_size: int, lone: list[int]) -> None:
    """Unless batches are of one image anyway."""
    for number in range(6):
        Image.new("RGB", (40, 60) if number < 5 else (50, 50)).save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(6)]
    recipe = TeacherRecipe.model_validate(
        {"image": {"keep_aspect": True, "size_px": 64, "canvas_factor": 1.0}, "train": {"batch_size": batch_size}}
    )
    shapes = canvas_shapes(recipe, files).tolist()
    assert shapes == [[80, 48]] * 5 + [lone]
    assert canvas_shapes(recipe, files[5:]).tolist() == [[64, 64]]
