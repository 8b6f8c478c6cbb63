"""Training on stored features: equal to rendering, reused, resumed, continued by a second stage; what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeembed.config import AugmentSection, load_recipe
from edgeembed.data.augment import draw_views
from edgeembed.data.loader import CanvasLoader
from edgeembed.data.manifest import read_manifest
from edgeembed.data.shapes import square_shapes
from edgeembed.data.views import render_views
from edgeembed.errors import CheckFailed, UserError
from edgeembed.network.model import EmbeddingModel
from edgeembed.network.model_files import load_model
from edgeembed.network.tensor_files import iterate_tensors
from edgeembed.run_folder import RunFolder
from edgeembed.teacher.images import labelled_images
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.teacher.train import train_teacher
from tests.conftest import Outcome

Run = Callable[..., Outcome]

STORED = """
backbone: {name: test_resnet, weights: none, frozen: true, stored_views: 3}
neck: {dropout: 0.2, dim: 16}
image: {size_px: 32}
augment: {scale: [0.5, 1.0], brightness: 0.3}
optim: {lr: 1.0e-2, warmup_epochs: 0}
train: {batch_size: 8, epochs: 4, precision: fp32, workers: 0, checkpoint_every_steps: 1, keep_checkpoints: 99}
eval: {every_steps: 0}
"""
SECOND_STAGE = """
stages:
  - {name: neck, train: {epochs: 2}}
  - {name: all, train: {epochs: 1}, backbone: {frozen: false, stored_views: null}}
"""


def recipe_of(folder: Path, text: str = STORED, *overrides: str) -> TeacherRecipe:
    (folder / "r.yaml").write_text(text)
    return load_recipe(TeacherRecipe, kind="teacher", name=str(folder / "r.yaml"), overrides=overrides)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return dict(iterate_tensors(run / "model.safetensors")) | dict(iterate_tensors(run / "head.safetensors"))


def features_of(run: Path) -> np.ndarray:
    (file,) = run.glob("features/*/features.npy")
    feature_NVF: np.ndarray = np.load(file)
    return feature_NVF


@pytest.fixture(scope="module")
def stored_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that trained on stored features."""
    folder = tmp_path_factory.mktemp("stored")
    train_teacher(recipe_of(folder), read_manifest(tiny_data), RunFolder(path=folder / "run"))
    return folder / "run"


def test_stored_features_are_those_of_the_rendered_views(stored_run: Path, tiny_data: Path) -> None:
    feature_NVF = features_of(stored_run)
    files = labelled_images(read_manifest(tiny_data)).files
    assert feature_NVF.shape[:2] == (len(files), 3)
    model, _ = load_model(stored_run)
    assert isinstance(model, EmbeddingModel)
    image_B = np.arange(len(files))
    canvases = CanvasLoader(files=files, shapes_N2=square_shapes(len(files), 40), workers=0, reduced=True)
    (batch,) = canvases.batches([image_B])
    augment = AugmentSection(scale=(0.5, 1.0), brightness=0.3)
    for view, section in ((0, AugmentSection(flip_probability=0.0)), (1, augment), (2, augment)):
        parameters = draw_views(section, seed=0, image_B=image_B, view=view)
        with torch.inference_mode():
            expected = model.eval().features(render_views(batch.canvas_BCHW, parameters, 32))
        found = torch.from_numpy(feature_NVF[:, view]).float()
        assert torch.cosine_similarity(found, expected).min() > 0.9999, view


def test_the_backbone_stays_and_the_neck_learns(stored_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    one_step = RunFolder(path=tmp_path / "run")
    train_teacher(recipe_of(tmp_path, STORED, "train.max_steps=1"), read_manifest(tiny_data), one_step)
    before, after = tensors(one_step.path), tensors(stored_run)
    for name in before:
        same = torch.equal(before[name], after[name])
        assert same == name.startswith("backbone."), name
    lines = [json.loads(line) for line in (stored_run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_resumed_run_reaches_the_same_bits_also_where_its_features_were_deleted(
    stored_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    for name in ("kept", "deleted"):
        left = tmp_path / name / "run"
        shutil.copytree(stored_run, left)
        for file in ("model.json", "model.safetensors", "eval.json"):
            (left / file).unlink()
        checkpoints = RunFolder(path=left).checkpoints()
        for checkpoint in checkpoints[len(checkpoints) // 2 :]:
            shutil.rmtree(checkpoint)
        if name == "deleted":
            shutil.rmtree(left / "features")
        train_teacher(recipe_of(tmp_path), read_manifest(tiny_data), RunFolder(path=left), resume=True)
        expected, found = tensors(stored_run), tensors(left)
        assert expected.keys() == found.keys()
        assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items()), name


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "features.npy").write_bytes(b""),
        lambda folder: (folder / "features.npy").write_bytes(b"PK\x03\x04junk"),
        lambda folder: np.save(folder / "features.npy", np.zeros((2, 3), np.float16)),
        lambda folder: np.save(folder / "features.npy", np.load(folder / "features.npy").astype(np.float64)),
        lambda folder: (folder / "features.json").write_text('{"unreadable": [999999]}'),
        lambda folder: (folder / "features.json").write_text('{"unreadable": ["a"]}'),
    ],
)
def test_damaged_features_are_named_in_one_line(
    stored_run: Path, tiny_data: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    shutil.copytree(stored_run, tmp_path / "first")
    (folder,) = (tmp_path / "first" / "features").iterdir()
    damage(folder)
    with pytest.raises(UserError, match=r"features/\w+: damaged, expected float16 features of .*: delete the folder"):
        train_teacher(recipe_of(tmp_path), read_manifest(tiny_data), RunFolder(path=tmp_path / "second"))


def test_a_second_run_uses_the_features_of_the_first_unless_they_depend_on_what_changed(
    stored_run: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(stored_run, tmp_path / "first")
    for name, override, reused in (("margin", "head.margin=0.1", True), ("crops", "augment.brightness=0.2", False)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            recipe = recipe_of(tmp_path, STORED, override, "train.epochs=1")
            train_teacher(recipe, read_manifest(tiny_data), RunFolder(path=tmp_path / name))
        assert (tmp_path / name / "features").exists() != reused
        assert (f"in 3 views: from {tmp_path / 'first'}" in caplog.text) == reused


def test_damaged_features_are_refused(stored_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    shutil.copytree(stored_run, tmp_path / "first")
    (file,) = tmp_path.glob("first/features/*/features.npy")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=f"{file.parent}: damaged.*delete the folder"):
        train_teacher(recipe_of(tmp_path), read_manifest(tiny_data), RunFolder(path=tmp_path / "run"))


def test_features_too_large_for_float16_are_refused_and_nothing_is_stored(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = EmbeddingModel.features
    monkeypatch.setattr(EmbeddingModel, "features", lambda self, image_BCHW: features(self, image_BCHW) + 1e5)
    with pytest.raises(CheckFailed, match="too large for float16: set backbone"):
        train_teacher(recipe_of(tmp_path), read_manifest(tiny_data), RunFolder(path=tmp_path / "run"))
    assert list((tmp_path / "run" / "features").iterdir()) == []


def test_images_that_cannot_be_read_are_counted_also_by_a_run_that_finds_features(
    tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = read_manifest(tiny_data)
    lines = ["path,label,domain,split,role"]
    for number, row in enumerate(manifest.training_rows()):
        Image.open(manifest.files[row]).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{manifest.label[row]},x,train,")
    (tmp_path / "3.png").write_bytes(b"no image")
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    for name in ("first", "second"):
        caplog.clear()
        run = RunFolder(path=tmp_path / "runs" / name)
        train_teacher(recipe_of(tmp_path), read_manifest(tmp_path / "m.csv"), run)
        assert json.loads(run.model_json.read_text())["data"]["unreadable"] == 1
        assert (f"1 of {len(lines) - 1} images could not be read" in caplog.text) == (name == "second")
        assert ("skipped" in caplog.text) == (name == "first")
    assert not (tmp_path / "runs" / "second" / "features").exists()


def test_a_second_stage_trains_on_from_the_neck_of_the_first(
    tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(path=tmp_path / "run")
    with caplog.at_level(logging.INFO):
        train_teacher(recipe_of(tmp_path, STORED + SECOND_STAGE), read_manifest(tiny_data), run)
    # Images are decoded for the second stage alone.
    assert caplog.text.index("reading ") > caplog.text.index("stage neck: steps")
    assert "left without evaluations" not in caplog.text or "a rough estimate" in caplog.text
    saved = [dict(iterate_tensors(folder / "model.safetensors")) for folder in run.checkpoints()]
    steps = len(saved)
    last_of_first, first_of_second = saved[steps * 2 // 3 - 1], saved[steps * 2 // 3]
    names = [name for name in last_of_first if name.startswith("model.backbone.") and name.endswith("weight")]
    assert all(torch.equal(saved[0][name], last_of_first[name]) for name in names)
    assert not all(torch.equal(last_of_first[name], first_of_second[name]) for name in names)
    moved = last_of_first["model.neck.projection.weight"] - first_of_second["model.neck.projection.weight"]
    assert 0.0 < moved.abs().max() < 0.05  # one step, not a new neck
    # Killed at the end of the first stage, and within the second, whose images are then decoded once, too.
    for keep in (steps * 2 // 3, steps - 1):
        caplog.clear()
        left = RunFolder(path=tmp_path / f"left{keep}")
        shutil.copytree(run.path, left.path)
        for file in ("model.json", "model.safetensors", "eval.json"):
            (left.path / file).unlink()
        for checkpoint in left.checkpoints()[keep:]:
            shutil.rmtree(checkpoint)
        with caplog.at_level(logging.INFO):
            train_teacher(recipe_of(tmp_path, STORED + SECOND_STAGE), read_manifest(tiny_data), left, resume=True)
        assert "reading 72 training images" in caplog.text
        found = tensors(left.path)
        assert all(torch.equal(tensor, found[key]) for key, tensor in tensors(run.path).items()), keep


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["backbone.frozen=false"],
            "the features of a trained backbone change: set backbone.frozen to true",
        ),
        (["mix.cutmix_probability=0.5"], "mixed images are new ones at every step: set mix.cutmix_probability and"),
        (["mix.mixup_probability=0.5"], "mixed images are new ones at every step: set mix.cutmix_probability and"),
        (["image.start_size_px=16"], "stored views have one size: set image.start_size_px to null"),
        (["backbone.stored_views=0"], "backbone.stored_views = 0"),
    ],
)
def test_what_cannot_be_stored_is_refused_when_the_recipe_is_read(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        recipe_of(tmp_path, STORED, *overrides)


def test_only_the_first_stage_trains_on_stored_features(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stage 'second': .*only the first stage"):
        recipe_of(tmp_path, STORED + "stages:\n  - {name: first}\n  - {name: second}\n")


def test_the_recipe_frozen_runs(edgeembed: Run, tiny_data: Path, tmp_path: Path) -> None:
    keys = ["backbone.name=test_resnet", "backbone.weights=none", "image.size_px=32", "train.workers=0"]
    keys += ["train.batch_size=16", "train.epochs=2"]
    outcome = edgeembed(
        *("teacher-train", "--data", tiny_data, "--recipe", "frozen", "--out", tmp_path / "run", "--json"),
        *(word for key in keys for word in ("--set", key)),
    )
    assert outcome.code == 0, outcome.stderr
    assert json.loads(outcome.stdout)["scores"]["queries"] > 0
    assert features_of(tmp_path / "run").ndim == 3
