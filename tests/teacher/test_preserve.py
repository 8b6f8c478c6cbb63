"""The loss that keeps the starting network's neighbours: its value, and runs that use it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from edgeembed.config import load_recipe
from edgeembed.data.manifest import read_manifest
from edgeembed.network.tensor_files import iterate_tensors
from edgeembed.run_folder import RunFolder
from edgeembed.teacher.preserve import preserve_loss
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.teacher.train import train_teacher

RECIPE = """
backbone: {name: test_resnet, weights: none}
neck: {dropout: 0.2, dim: 16}
image: {size_px: 32}
augment: {scale: [0.5, 1.0], brightness: 0.3}
preserve: {weight: 1.0, temperature: 0.1}
optim: {lr: 1.0e-2, warmup_epochs: 0}
train: {batch_size: 8, epochs: 2, precision: fp32, workers: 0, checkpoint_every_steps: 1, keep_checkpoints: 99}
eval: {every_steps: 0}
"""


def recipe_of(folder: Path, *overrides: str) -> TeacherRecipe:
    (folder / "r.yaml").write_text(RECIPE)
    return load_recipe(TeacherRecipe, kind="teacher", name=str(folder / "r.yaml"), overrides=overrides)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return dict(iterate_tensors(run / "model.safetensors")) | dict(iterate_tensors(run / "head.safetensors"))


def test_the_loss_is_the_divergence_between_two_distributions_of_neighbours() -> None:
    # Two and one: by the features the first two are alike and opposite to the third.
    start_BF = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-2.0, 0.0]])
    embedding_BD = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), dim=1)
    temperature = 0.5
    centred_BF = F.normalize(start_BF, dim=1)  # their mean is zero
    expected = 0.0
    for image in range(3):
        others = [other for other in range(3) if other != image]
        shares = []
        for vectors in (centred_BF, embedding_BD):
            weights = [math.exp(float(vectors[image] @ vectors[other]) / temperature) for other in others]
            shares.append([weight / sum(weights) for weight in weights])
        expected += sum(p * math.log(p / q) for p, q in zip(*shares, strict=True)) / 3
    assert preserve_loss(embedding_BD, start_BF, temperature=temperature).item() == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_zero_for_the_same_neighbours_and_falls_towards_them() -> None:
    torch.manual_seed(0)
    start_BF = torch.randn(12, 5) + 3.0
    same_BD = F.normalize(start_BF - start_BF.mean(dim=0), dim=1)
    assert preserve_loss(same_BD, start_BF, temperature=0.1).item() == pytest.approx(0.0, abs=1e-6)
    embedding_BD = F.normalize(torch.randn(12, 5), dim=1).requires_grad_()
    before = preserve_loss(embedding_BD, start_BF, temperature=0.1)
    before.backward()
    after = preserve_loss(embedding_BD - 0.01 * embedding_BD.grad, start_BF, temperature=0.1)
    assert 0.0 < after.item() < before.item()


@pytest.mark.parametrize("num", [1, 2])
def test_a_batch_too_small_for_neighbours_costs_nothing(num: int) -> None:
    embedding_BD = torch.ones(num, 4, requires_grad=True)
    loss = preserve_loss(embedding_BD, torch.randn(num, 6), temperature=0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert not embedding_BD.grad.any()


@pytest.mark.parametrize("stored", [False, True])
def test_runs_with_the_loss_differ_and_resume_to_the_same_bits(tiny_data: Path, tmp_path: Path, stored: bool) -> None:
    keys = ["backbone.frozen=true", "backbone.stored_views=2"] if stored else []
    manifest = read_manifest(tiny_data)
    whole, stopped, without = (RunFolder(path=tmp_path / name) for name in ("whole", "stopped", "without"))
    train_teacher(recipe_of(tmp_path, *keys), manifest, whole)
    train_teacher(recipe_of(tmp_path, *keys, "preserve.weight=0"), manifest, without)
    # As a run is left that was killed after its second checkpoint.
    shutil.copytree(whole.path, stopped.path)
    for checkpoint in stopped.checkpoints()[2:]:
        shutil.rmtree(checkpoint)
    for name in ("model.json", "model.safetensors", "eval.json"):
        (stopped.path / name).unlink()
    train_teacher(recipe_of(tmp_path, *keys), manifest, stopped, resume=True)
    expected, found = tensors(whole.path), tensors(stopped.path)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not torch.equal(tensors(without.path)["centres"], expected["centres"])
    assert not any(
        name.startswith("start.") for name in dict(iterate_tensors(whole.checkpoints()[0] / "model.safetensors"))
    )
