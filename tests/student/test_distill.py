"""Student runs: the teacher's space is inherited and learnt, labels are not needed, a kill costs nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgeembed.checkpoint import iterate_tensors
from edgeembed.data.manifest import Manifest, read_manifest, write_manifest
from edgeembed.run import RunFolder
from edgeembed.teacher.saved import load_model
from tests.conftest import TINY_STUDENT, Outcome, as_options

Run = Callable[..., Outcome]


def test_the_student_inherits_the_space_and_its_dimension(tiny_student: Path, tiny_teacher: Path) -> None:
    student, facts = load_model(tiny_student)
    assert facts["role"] == "student"
    assert facts["space_id"] == load_model(tiny_teacher)[1]["space_id"]
    assert student.dim == 64
    scores = json.loads((tiny_student / "eval.json").read_text())["scores"]
    assert set(scores) == {"symmetric", "asymmetric"}


def test_the_student_approaches_its_teacher(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    keys = [*TINY_STUDENT, "train.epochs=20", "eval.every_steps=0", "optim.lr=0.01", "loss.centre_kl=0.1"]
    command = ["distill", "--data", tiny_data, "--teacher", tiny_teacher, "--recipe", "quickstart", *as_options(keys)]
    assert edgeembed(*command, "--out", tmp_path / "run").code == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]


def test_unlabelled_images_are_welcome(edgeembed: Run, tiny_data: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    table = read_manifest(tiny_data)
    bare = Manifest(
        root=table.root,
        path=table.path,
        label=(None,) * len(table),
        domain=table.domain,
        split=("train",) * len(table),
        role=(None,) * len(table),
    )
    write_manifest(tmp_path / "bare.parquet", bare)
    keys = as_options([*TINY_STUDENT, "train.max_steps=2"])
    command = ["distill", "--data", tmp_path / "bare.parquet", "--teacher", tiny_teacher, "--recipe", "quickstart"]
    assert edgeembed(*command, "--out", tmp_path / "run", *keys).code == 0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_run_resumes_to_the_same_bits(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path, optimizer: str
) -> None:
    keys = [*TINY_STUDENT, "train.epochs=6", "targets.views=2", "eval.every_steps=0", "student.dropout=0.2"]
    keys += [f"optim.kind={optimizer}"]
    command = [sys.executable, "-m", "edgeembed", "distill", "--teacher", str(tiny_teacher), "--data", str(tiny_data)]
    command += ["--recipe", "quickstart", *as_options(keys)]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True)
    process = subprocess.Popen([*command, "--out", str(killed)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not RunFolder(path=killed).checkpoints() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run([*command, "--out", str(killed), "--resume"], check=True, capture_output=True)
    found = dict(iterate_tensors(killed / "model.safetensors"))
    for name, tensor in iterate_tensors(whole / "model.safetensors"):
        assert torch.equal(tensor, found[name]), name


def test_a_run_killed_after_its_last_step_is_scored_all_the_same(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, tiny_student: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    shutil.copytree(tiny_student, killed)
    for name in ("model.json", "model.safetensors", "eval.json"):
        (killed / name).unlink()
    command = ["distill", "--data", tiny_data, "--teacher", tiny_teacher, "--recipe", "quickstart", "--out", killed]
    assert edgeembed(*command, "--resume", *as_options(TINY_STUDENT)).code == 0
    expected, found = (json.loads((run / "eval.json").read_text()) for run in (tiny_student, killed))
    assert found["scores"] is not None
    assert found["scores"] == expected["scores"]


def test_defaults_find_the_latest_teacher_and_its_data(
    edgeembed: Run, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    missing = edgeembed("distill", "--student", "test_resnet")
    assert missing.code == 2
    assert "no finished teacher run under runs/" in missing.stderr
    shutil.copytree(tiny_teacher, tmp_path / "runs" / "teacher")
    keys = as_options([*(item for item in TINY_STUDENT if "student." not in item), "train.max_steps=1"])
    outcome = edgeembed("distill", "--student", "test_resnet", *keys, "--set", "student.weights=none")
    assert outcome.code == 0
    assert RunFolder(path=tmp_path / "runs" / "test_resnet").finished


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--student", "mobilenetv5_s"], "unknown student 'mobilenetv5_s'"),
        (["--teacher", "nowhere"], "nowhere: holds no finished"),
        (["--recipe", "defualt"], "did you mean 'default'"),
    ],
)
def test_mistakes_are_one_line(edgeembed: Run, tiny_data: Path, arguments: list[str], told: str) -> None:
    outcome = edgeembed("distill", "--data", tiny_data, *arguments)
    assert outcome.code == 2
    assert told in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1
