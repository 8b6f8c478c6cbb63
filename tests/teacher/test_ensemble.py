"""Ensembles of teachers: their embedding, the files that they leave, and mistakes that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeembed.network.model_files import load_model
from edgeembed.network.space_id import space_id
from edgeembed.network.tensor_files import iterate_tensors
from tests.conftest import TINY, TINY_STUDENT, Outcome, as_options

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def other_teacher(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeembed.cli import run

    out = tmp_path_factory.mktemp("other") / "run"
    command = ["teacher-train", "--data", str(tiny_data), "--recipe", "quickstart", "--out", str(out)]
    assert run([*command, *as_options([*TINY, "neck.dim=16", "train.seed=3", "inference.flip=true"])]) == 0
    return out


def test_an_ensemble_is_its_weighted_members_one_after_the_other(
    edgeembed: Run, tiny_teacher: Path, other_teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ensemble"
    outcome = edgeembed("teacher-join", tiny_teacher, other_teacher, "--weights", "1,0.5", "--out", out, "--json")
    assert outcome.code == 0, outcome.stderr
    facts = json.loads(outcome.stdout)
    model, _ = load_model(out)
    assert facts["embedding"]["dim"] == model.dim == 80
    assert facts["space_id"] == space_id(model)
    image = torch.rand(3, 3, 32, 32) * 255
    with torch.no_grad():
        first, second = (load_model(path)[0](image) for path in (tiny_teacher, other_teacher))
        expected = torch.nn.functional.normalize(torch.cat([first, 0.5 * second], dim=1), dim=1)
        assert torch.allclose(model(image), expected, atol=1e-6)
    head = dict(iterate_tensors(out / "head.safetensors"))["centres"]
    assert head.shape[1] == 80
    np.testing.assert_allclose(head.norm(dim=1).numpy(), 1.0, atol=1e-5)


def test_a_student_learns_from_an_ensemble(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, other_teacher: Path, tmp_path: Path
) -> None:
    ensemble = tmp_path / "ensemble"
    assert edgeembed("teacher-join", tiny_teacher, other_teacher, "--out", ensemble).code == 0
    keys = as_options([*TINY_STUDENT, "loss.centre_kl=0.1"])
    command = [
        "distill",
        "--teacher",
        ensemble,
        "--data",
        tiny_data,
        "--recipe",
        "quickstart",
        "--student",
        "resnet_xs",
    ]
    outcome = edgeembed(*command, "--out", tmp_path / "student", *keys)
    assert outcome.code == 0, outcome.stderr
    student, origin = load_model(tmp_path / "student")
    assert student.dim == 80
    assert origin.space_id == load_model(ensemble)[1].space_id


@pytest.mark.parametrize(
    ("runs", "weights", "message"),
    [
        (["teacher"], None, "1 runs and weights [1.0]: expected two or more runs"),
        (
            ["teacher", "teacher"],
            "1",
            "2 runs and weights [1.0]: expected two or more runs, and a weight above 0 for each",
        ),
        (["teacher", "teacher"], "1,x", "expected numbers"),
        (["teacher", "nothing"], None, "holds no finished run"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    edgeembed: Run, tiny_teacher: Path, tmp_path: Path, runs: list[str], weights: str | None, message: str
) -> None:
    paths = [tiny_teacher if name == "teacher" else tmp_path / name for name in runs]
    options = ["--weights", weights] if weights else []
    outcome = edgeembed("teacher-join", *paths, *options, "--out", tmp_path / "ensemble")
    assert outcome.code == 2
    assert message in outcome.stderr
    assert not (tmp_path / "ensemble").exists()
