"""Joined teachers: what they compute, what they leave, what cannot be joined."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeembed.network.model_files import load_model, space_id
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


def test_a_joined_teacher_is_its_members_weighted(
    edgeembed: Run, tiny_teacher: Path, other_teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "joined"
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


def test_a_student_learns_from_a_joined_teacher(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, other_teacher: Path, tmp_path: Path
) -> None:
    joined = tmp_path / "joined"
    assert edgeembed("teacher-join", tiny_teacher, other_teacher, "--out", joined).code == 0
    keys = as_options([*TINY_STUDENT, "loss.centre_kl=0.1"])
    command = ["distill", "--teacher", joined, "--data", tiny_data, "--recipe", "quickstart", "--student", "resnet_xs"]
    outcome = edgeembed(*command, "--out", tmp_path / "student", *keys)
    assert outcome.code == 0, outcome.stderr
    student, origin = load_model(tmp_path / "student")
    assert student.dim == 80
    assert origin.space_id == load_model(joined)[1].space_id


@pytest.mark.parametrize(
    ("runs", "weights", "told"),
    [
        (["teacher"], None, "expected two or more"),
        (["teacher", "teacher"], "1", "expected two or more, and a weight each"),
        (["teacher", "teacher"], "1,x", "expected numbers"),
        (["teacher", "nothing"], None, "holds no finished run"),
    ],
)
def test_what_cannot_be_joined(
    edgeembed: Run, tiny_teacher: Path, tmp_path: Path, runs: list[str], weights: str | None, told: str
) -> None:
    paths = [tiny_teacher if name == "teacher" else tmp_path / name for name in runs]
    options = ["--weights", weights] if weights else []
    outcome = edgeembed("teacher-join", *paths, *options, "--out", tmp_path / "joined")
    assert outcome.code == 2
    assert told in outcome.stderr
    assert not (tmp_path / "joined").exists()
