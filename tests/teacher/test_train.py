"""Teacher runs: what they leave, exact resumption after a kill, and errors before anything is written."""

from __future__ import annotations

import json
import logging
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

from edgeembed.config import load_recipe
from edgeembed.data.manifest import read_manifest
from edgeembed.errors import CheckFailed, UserError
from edgeembed.network.model_files import load_model
from edgeembed.network.space_id import space_id
from edgeembed.network.tensor_files import iterate_tensors, save_tensors
from edgeembed.run_folder import RunFolder
from edgeembed.teacher import train as train_module
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.teacher.train import train_teacher
from tests.conftest import TINY, Outcome, as_options

Run = Callable[..., Outcome]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(iterate_tensors(run / "model.safetensors")) | dict(iterate_tensors(run / "head.safetensors"))


def test_a_run_leaves_everything_that_the_design_names(tiny_teacher: Path) -> None:
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "eval.json", "model.safetensors", "tensorboard"):
        assert (tiny_teacher / name).exists(), name
    model, origin = load_model(tiny_teacher)
    assert origin.role == "teacher"
    assert origin.space_id == space_id(model)
    assert json.loads((tiny_teacher / "model.json").read_text())["embedding"] == {
        "dim": 64,
        "normalised": True,
        "metric": "cosine",
        "ordered": True,
    }
    assert json.loads((tiny_teacher / "eval.json").read_text())["scores"]["queries"] > 0
    assert list((tiny_teacher / "checkpoints").glob("step-????????/model.safetensors"))
    lines = [json.loads(line) for line in (tiny_teacher / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "loss", "lr", "margin", "images_per_second", "val_map"} <= set().union(*lines)


def test_a_finished_run_says_so_and_an_occupied_folder_is_not_overwritten(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = ["teacher-train", "--data", tiny_data, "--recipe", "quickstart", "--out", tiny_teacher, *as_options(TINY)]
    with caplog.at_level(logging.WARNING):
        assert edgeembed(*command, "--resume").code == 0
    assert "already finished" in caplog.text
    refused = edgeembed(*command)
    assert refused.code == 2
    assert "holds a finished run already: choose another --out" in refused.stderr
    other = edgeembed(*command, "--resume", "--set", "train.seed=5")
    assert other.code == 2
    assert "differs from what is requested: train.seed is 0 in the run, 5 requested: " in other.stderr


def test_a_killed_run_resumes_to_the_same_bits(tiny_data: Path, tmp_path: Path) -> None:
    overrides = [*TINY, "train.precision=fp32", "train.epochs=5", "neck.dropout=0.2", "eval.every_steps=0"]
    command = [sys.executable, "-m", "edgeembed", "teacher-train", "--data", str(tiny_data), "--recipe", "quickstart"]
    command += as_options(overrides)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True)
    process = subprocess.Popen([*command, "--out", str(killed)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not RunFolder(path=killed).checkpoints() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not RunFolder(path=killed).finished
    subprocess.run([*command, "--out", str(killed), "--resume"], check=True, capture_output=True)
    expected, found = weights(whole), weights(killed)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    steps = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_a_run_killed_after_its_last_step_is_scored_all_the_same(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    shutil.copytree(tiny_teacher, killed)
    for name in ("model.json", "model.safetensors", "eval.json"):
        (killed / name).unlink()
    command = ["teacher-train", "--data", tiny_data, "--recipe", "quickstart", "--out", killed, "--resume"]
    assert edgeembed(*command, *as_options(TINY)).code == 0
    expected, found = (json.loads((run / "eval.json").read_text()) for run in (tiny_teacher, killed))
    assert found["scores"] is not None
    assert found["scores"] == expected["scores"]


def test_sigterm_keeps_what_was_done(tiny_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgeembed", "teacher-train", "--data", str(tiny_data), "--recipe", "quickstart"]
    command += as_options([*TINY, "train.epochs=3000", "train.checkpoint_every_steps=0", "eval.every_steps=0"])
    process = subprocess.Popen([*command, "--out", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 143
    assert "continue with `edgeembed teacher-train --resume " in stderr.strip().splitlines()[-1]
    assert len(RunFolder(path=tmp_path / "run").checkpoints()) == 1


def test_accumulated_steps_learn_too(tiny_data: Path, tmp_path: Path) -> None:
    overrides = [*TINY, "train.accumulate_steps=2", "train.max_steps=3", "eval.every_steps=0"]
    recipe = load_recipe(
        TeacherRecipe, kind="teacher", name="vit_h14", overrides=[*overrides, "train.grad_checkpointing=false"]
    )
    result = train_teacher(recipe, read_manifest(tiny_data), RunFolder(path=tmp_path / "run"))
    assert result.steps == 3
    assert result.scores is None


def test_a_loss_that_is_not_finite_stops_the_run(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def bad_after_three(*args: object, **keys: object) -> torch.Tensor:
        calls.append(1)
        loss = real(*args, **keys)
        return loss * float("nan") if len(calls) > 3 else loss

    real = train_module.margin_loss
    monkeypatch.setattr(train_module, "margin_loss", bad_after_three)
    recipe = load_recipe(TeacherRecipe, kind="teacher", name="quickstart", overrides=TINY)
    run = RunFolder(path=tmp_path / "run")
    with pytest.raises(CheckFailed, match="step 3: loss nan"):
        train_teacher(recipe, read_manifest(tiny_data), run)
    assert [path.name for path in run.checkpoints()] == ["step-00000002"]
    assert not run.finished


def test_corrupt_images_are_skipped_and_counted(
    edgeembed: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from edgeembed.data.default_set import write_default_set

    table = write_default_set(tmp_path / "data", num_instances=10, num_views=4, size_px=48, seed=1)
    bad = table.files[table.rows("train")[0]]
    Path(bad).write_bytes(b"\xff\xd8\xff broken")
    command = ["teacher-train", "--data", tmp_path / "data/manifest.parquet", "--recipe", "quickstart"]
    with caplog.at_level(logging.WARNING):
        outcome = edgeembed(*command, "--out", tmp_path / "run", *as_options([*TINY, "train.cache=always"]))
    assert outcome.code == 0
    assert bad in caplog.text
    assert json.loads((tmp_path / "run/model.json").read_text())["data"]["unreadable"] == 1


def write_csv(folder: Path, text: str) -> Path:
    path = folder / "m.csv"
    path.write_text("path,label,domain,split,role\n" + text)
    return path


@pytest.mark.parametrize(
    ("rows", "present", "message"),
    [
        ("a.jpg,1,d,train,\nb.jpg,1,d,train,\n", True, "1 labelled classes, a margin head needs at least 2"),
        ("a.jpg,1,d,train,\nb.jpg,2,d,train,\n", False, "do not exist, first a.jpg (paths are relative to"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_before_anything_is_written(
    edgeembed: Run, tmp_path: Path, rows: str, present: bool, message: str
) -> None:
    for name in ("a.jpg", "b.jpg") if present else ():
        (tmp_path / name).touch()
    outcome = edgeembed("teacher-train", "--data", write_csv(tmp_path, rows), "--out", tmp_path / "run")
    assert outcome.code == 2
    assert message in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def cut_short(run: Path, out: Path) -> Path:
    """A copy of a finished run as if it had been killed after its first checkpoint."""
    shutil.copytree(run, out)
    for name in ("model.json", "model.safetensors", "eval.json"):
        (out / name).unlink()
    for checkpoint in RunFolder(path=out).checkpoints()[1:]:
        shutil.rmtree(checkpoint)
    return out


def test_a_run_is_resumed_by_its_name_alone(
    edgeembed: Run, tiny_teacher: Path, tiny_student: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for command, run in (("teacher-train", tiny_teacher), ("distill", tiny_student)):
        left = cut_short(run, tmp_path / command)
        assert edgeembed(command, "--resume", left).code == 0
        assert (left / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
        caplog.clear()
        assert edgeembed(command, "--out", left, "--resume").code == 0
        assert "already finished" in caplog.text


def test_a_checkpoint_of_an_earlier_version_is_resumed_without_the_mean_of_its_embeddings(
    edgeembed: Run, tiny_teacher: Path, tmp_path: Path
) -> None:
    left = cut_short(tiny_teacher, tmp_path / "left")
    (checkpoint,) = RunFolder(path=left).checkpoints()
    tensors = dict(iterate_tensors(checkpoint / "model.safetensors"))
    del tensors["moments.mean_D"]
    save_tensors(checkpoint / "model.safetensors", tensors)
    assert edgeembed("teacher-train", "--resume", left).code == 0
    whole, resumed = (load_model(run)[0].neck.projection.weight for run in (tiny_teacher, left))
    assert (resumed.T @ resumed).allclose(whole.T @ whole, atol=1e-4)  # the same weights, but for the rotation

    del tensors["head.weight"]
    left = cut_short(tiny_teacher, tmp_path / "damaged")
    save_tensors(RunFolder(path=left).checkpoints()[0] / "model.safetensors", tensors)
    refused = edgeembed("teacher-train", "--resume", left)
    assert refused.code == 2
    assert "lacks tensor 'head.weight' of the model" in refused.stderr


def test_what_a_resume_cannot_do_is_one_line(edgeembed: Run, tiny_teacher: Path, tmp_path: Path) -> None:
    left = cut_short(tiny_teacher, tmp_path / "left")
    inputs = (left / "inputs.json").read_text()
    for arguments, message in (
        (["--resume", tmp_path / "nowhere"], "nowhere: no such run to resume"),
        (["--resume", "--out", tmp_path / "nowhere"], "nowhere: no such run to resume"),
        (["--resume", left, "--out", tmp_path / "other"], "two run folders: name one"),
        ([left], "add --resume, or write --out"),
        (["--resume", left, "--set", "optim.lr=7"], "optim.lr is 0.01 in the run, 7.0 requested"),
        (["--resume", left, "--recipe", "vit_h14"], "backbone.name is 'test_resnet' in the run, 'ViT-H-14' requested"),
        (["--out", left, "--data", "x.parquet"], "holds a run already: add --resume to continue it"),
        (["--out", tmp_path / "new"], "--data is missing"),
    ):
        outcome = edgeembed("--quiet", "teacher-train", *arguments)
        assert outcome.code == 2
        assert message in outcome.stderr
        assert len(outcome.stderr.splitlines()) == 1
    (left / "inputs.json").write_text(inputs.replace("manifest.parquet", "gone.parquet"))
    assert "gone.parquet no longer exists: name it with --data" in edgeembed("teacher-train", "--resume", left).stderr
    (left / "inputs.json").unlink()
    assert "name it with --data" in edgeembed("teacher-train", "--resume", left).stderr
    assert not (tmp_path / "nowhere").exists()


def test_a_run_that_trains_is_refused_to_a_second_process_and_can_be_looked_at(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    left = cut_short(tiny_teacher, tmp_path / "left")
    with RunFolder(path=left).locked():
        for arguments in (["--resume", left], ["--out", left, "--data", tiny_data]):
            refused = edgeembed("teacher-train", *arguments)
            assert refused.code == 2
            assert f"{left}: in use by process {os.getpid()} on " in refused.stderr
        with pytest.raises(UserError, match="in use by process"):
            train_teacher(
                load_recipe(TeacherRecipe, kind="teacher", name="quickstart"),
                read_manifest(tiny_data),
                RunFolder(path=left),
            )
        exported = edgeembed("export", left, "--out", tmp_path / "bundle")
        assert exported.code == 2
        assert "holds no finished run" in exported.stderr
    with RunFolder(path=tiny_teacher).locked():  # trained again in its place, say: what is finished can be read
        assert load_model(tiny_teacher)[1].role == "teacher"


def test_a_run_killed_within_its_first_checkpoint_starts_again(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    command = ["teacher-train", "--data", tiny_data, "--recipe", "quickstart", "--out", killed, *as_options(TINY)]
    code = (
        "import os, sys; from edgeembed.training import checkpoints\n"
        "from edgeembed.cli import run\n"
        "checkpoints.write_json = lambda *_: os.kill(os.getpid(), 9)\n"
        "run(sys.argv[1:])\n"
    )
    process = subprocess.run([sys.executable, "-c", code, *map(str, command)], capture_output=True)
    assert process.returncode == -signal.SIGKILL
    (partial,) = (killed / "checkpoints").iterdir()
    assert (partial.name[0], partial.suffix) == (".", ".partial")
    shutil.copytree(killed, tmp_path / "again")
    assert edgeembed("teacher-train", "--resume", killed).code == 0
    command[command.index(killed)] = tmp_path / "again"
    assert edgeembed(*command).code == 0
    for run in (killed, tmp_path / "again"):
        assert (run / "model.safetensors").read_bytes() == (tiny_teacher / "model.safetensors").read_bytes()
        assert not list(run.glob("checkpoints/.*"))
