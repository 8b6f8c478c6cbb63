"""Student runs: the teacher's space, images without labels, exact resumption after a kill."""

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
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from edgeembed.cli.distill import log_scores
from edgeembed.config import AugmentSection, MixSection
from edgeembed.data.loader import open_canvases
from edgeembed.data.manifest import Manifest, read_manifest, write_manifest
from edgeembed.data.shapes import square_shapes
from edgeembed.device.images import load_pixels
from edgeembed.eval_json import StudentEvaluation, read_evaluation
from edgeembed.network.macs import count_macs
from edgeembed.network.model import Network
from edgeembed.network.model_files import load_model
from edgeembed.network.tensor_files import iterate_tensors
from edgeembed.run_folder import RunFolder
from edgeembed.size_ratio import SizeRatio
from edgeembed.student.targets.provider import TargetProvider
from edgeembed.student.targets.store import TargetStore, open_existing
from edgeembed.student.views import Replay
from edgeembed.training.embed import input_shapes
from tests.conftest import TINY_STUDENT, Outcome, as_options

Run = Callable[..., Outcome]


def test_the_student_inherits_the_space_and_its_dimension(tiny_student: Path, tiny_teacher: Path) -> None:
    student, origin = load_model(tiny_student)
    assert origin.role == "student"
    assert origin.space_id == load_model(tiny_teacher)[1].space_id
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


def test_a_student_learns_from_unlabelled_images(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
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
    data = json.loads((tmp_path / "run" / "model.json").read_text())["data"]
    assert (data["images"], data["unreadable"]) == (len(table), 0)


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
    deadline = time.monotonic() + 300
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
    ("arguments", "message"),
    [
        (["--student", "mobilenetv5_s"], "unknown student 'mobilenetv5_s'"),
        (["--teacher", "nowhere"], "nowhere: holds no finished"),
        (["--recipe", "defualt"], "did you mean 'default'"),
    ],
)
def test_mistakes_are_one_line(edgeembed: Run, tiny_data: Path, arguments: list[str], message: str) -> None:
    outcome = edgeembed("distill", "--data", tiny_data, *arguments)
    assert outcome.code == 2
    assert message in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1


def test_retention_has_a_paired_interval(tiny_student: Path) -> None:
    result = json.loads((tiny_student / "eval.json").read_text())
    for kind, scores in result["scores"].items():
        kept = result["retention"][kind]
        assert kept["value"] == pytest.approx(scores["map"] / result["teacher"]["map"])
        low, high = kept["ci95"]
        assert low <= kept["value"] <= high
        assert high - low >= kept["ci95_queries"][1] - kept["ci95_queries"][0]


def test_retention_stands_beside_the_sizes_of_teacher_and_student(
    tiny_student: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluation = read_evaluation(RunFolder(path=tiny_student), StudentEvaluation)
    assert evaluation.size_ratio == SizeRatio(params=1.0, macs=1.0)  # both are test_resnet at 32 px
    with caplog.at_level("INFO"):
        log_scores(evaluation)
    assert " of the teacher's mAP at 1.00 times its parameters and 1.00 times its MACs" in caplog.text


def test_a_cut_student_is_trained_and_loaded_again(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    keys = as_options([*TINY_STUDENT, "student.name=mobilenetv3_s050", "student.blocks=2", "train.max_steps=1"])
    out = tmp_path / "run"
    command = ["distill", "--data", tiny_data, "--teacher", tiny_teacher, "--out", out, *keys]
    refused = edgeembed(*command, "--set", "student.blocks=9")
    assert (refused.code, out.exists()) == (2, False)
    assert "student.blocks = 9: mobilenetv3_small_050 has 6 groups of blocks: give 1 to 6" in refused.stderr
    assert edgeembed(*command).code == 0
    student, origin = load_model(out)
    assert student.describe().architecture.blocks == 2
    assert origin.teacher is not None
    assert origin.teacher.macs == count_macs(load_model(tiny_teacher)[0])


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_batch_norm_keeps_its_statistics(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, frozen: bool
) -> None:
    keys = [*TINY_STUDENT, f"student.frozen_batch_norm={frozen}", "train.max_steps=2"]
    command = ["distill", "--data", tiny_data, "--teacher", tiny_teacher, "--out", tmp_path / "run", *as_options(keys)]
    assert edgeembed(*command).code == 0
    student, _ = load_model(tmp_path / "run")
    means = [tensor for name, tensor in student.state_dict().items() if name.endswith("running_mean")]
    assert means
    # Random weights start with means of zero.
    assert all(bool(mean.any()) != frozen for mean in means)


class Recorder(torch.nn.Module):
    """Stands for a teacher that keeps proportions: gives the mean colour and remembers the shapes that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.size_px, self.dim, self.keep_aspect = "recorder", 64, 3, True
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(image_BCHW.shape))
        return torch.nn.functional.normalize(image_BCHW.float().mean(dim=(2, 3)), dim=1)


def test_a_teacher_that_keeps_proportions_sees_views_in_them(tmp_path: Path) -> None:
    sizes = [(200, 100), (100, 200), (150, 150), (200, 100)]
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (90, 90, 10)]
    for number, (size, colour) in enumerate(zip(sizes, colours, strict=True)):
        Image.new("RGB", size, colour).save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(4)]
    canvases = open_canvases(files, shapes_N2=square_shapes(4, 96), workers=0)
    replay = Replay(augment=AugmentSection(scale=(0.5, 0.9)), mix=MixSection(), seed=0)
    (batch,) = replay.batches(canvases, [(np.arange(4), np.zeros(4, np.int64))])
    teacher = Recorder()
    shapes_N2 = input_shapes(cast(Network, teacher), files, workers=1)
    live = TargetProvider(cast(Network, teacher), None, shapes_N2, precision="fp32", device="cpu")
    found_BD = live.targets(batch, np.arange(4))
    assert sorted(teacher.shapes) == [(1, 3, 64, 64), (1, 3, 96, 48), (2, 3, 48, 96)]
    expected_BD = torch.nn.functional.normalize(torch.tensor(colours, dtype=torch.float32), dim=1)
    assert torch.allclose(found_BD, expected_BD, atol=0.02)  # each with its own image


def test_a_view_in_an_image_s_own_proportions_is_the_image(tmp_path: Path) -> None:
    row, column = np.mgrid[:100, :200]
    wave_HWC = np.stack([127 + 120 * np.sin(row / 9), 127 + 120 * np.sin(column / 7), 0 * row], axis=2)
    Image.fromarray(wave_HWC.astype(np.uint8)).save(tmp_path / "0.png")
    canvases = open_canvases([str(tmp_path / "0.png")], shapes_N2=square_shapes(1, 128), workers=0)
    replay = Replay(augment=AugmentSection(flip_probability=0.0), mix=MixSection(), seed=0)
    (batch,) = replay.batches(canvases, [(np.zeros(1, np.int64), np.zeros(1, np.int64))])
    view_HWC = batch.render(np.zeros(1, np.int64), (48, 96), "cpu")[0].permute(1, 2, 0).numpy().astype(int)
    expected_HWC = load_pixels(tmp_path / "0.png", 48, 96).astype(int)
    assert np.abs(view_HWC - expected_HWC).mean() < 3.0


def test_images_that_come_several_times_in_an_epoch_have_other_views(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """Two images visited three times in each of two epochs: six views of each are embedded and stored."""
    manifest = read_manifest(tiny_data)
    rows = manifest.rows("train")[:12]
    repeat = [3, 3, 0, *[1] * 9]
    data = tmp_path / "repeated.parquet"
    write_manifest(data, manifest.take(rows).with_repeat(repeat))
    store = tmp_path / "store"
    command = [
        "distill",
        "--data",
        data,
        "--teacher",
        tiny_teacher,
        "--recipe",
        "quickstart",
        "--out",
        tmp_path / "run",
    ]
    keys = [*TINY_STUDENT, "train.epochs=2", "train.batch_size=5", f"targets.store={store}", "targets.views=8"]
    assert edgeembed(*command, *as_options([*keys, "eval.every_steps=0"])).code == 0
    described = json.loads((store / "targets.json").read_text())
    assert described["num_images"] == 11
    kept = TargetStore(store, open_existing(store).key)
    num_views_of = np.sum([kept.read(np.arange(11), view)[1] for view in range(kept.num_views())], axis=0)
    assert num_views_of[:2].tolist() == [6, 6]
    assert (num_views_of[2:] <= 2).all()
