"""Which number format a run computes in, and that it is kept."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from edgeembed.errors import UserError
from edgeembed.machine import describe_machine
from edgeembed.run_folder import RunFolder
from edgeembed.training import precision as module
from edgeembed.training.device import pick_device
from edgeembed.training.precision import (
    choose_precision,
    loss_scaler,
    native_precision,
    restore_loss_scale,
    step_time_relative_to_fp32,
)
from tests.conftest import TINY, TINY_STUDENT, Outcome, as_options

Run = Callable[..., Outcome]


def on_cpu(monkeypatch: pytest.MonkeyPatch, *, flags: list[str], factor: float) -> None:
    """A CPU with these flags, on which a step in bf16 or fp16 takes `factor` times as long as in fp32."""
    machine = dataclasses.replace(describe_machine(), cpu_flags=tuple(flags))
    monkeypatch.setattr(module, "describe_machine", lambda: machine)
    monkeypatch.setattr(module, "step_time_relative_to_fp32", lambda _precision: factor)


@pytest.mark.parametrize(
    ("flags", "factor", "expected", "reason"),
    [
        (["avx2", "avx512_bf16"], 0.6, "bf16", "native here"),
        (["asimd", "bf16"], 0.6, "bf16", "native here"),
        (["avx2", "avx512_bf16"], 1.1, "bf16", "native here"),  # a busy machine: emulation costs far more
        (["avx2", "avx512_bf16"], 6.2, "fp32", "took 6.2 times as long in bf16"),
        (["avx2", "avx512f", "avx512_vnni"], 0.1, "fp32", "no bf16 units"),
        ([], 0.1, "fp32", "no bf16 units"),
    ],
)
def test_a_cpu_computes_in_bf16_only_where_flags_and_measurement_agree(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], factor: float, expected: str, reason: str
) -> None:
    on_cpu(monkeypatch, flags=flags, factor=factor)
    found, why = native_precision("cpu")
    assert found == expected
    assert reason in why


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), "fp16"), ((7, 0), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16"), ((12, 0), "bf16")],
)
def test_a_gpu_before_ampere_computes_in_fp16_with_a_scaled_loss(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    found, why = native_precision("cuda")
    assert found == expected
    assert "compute capability {}.{}".format(*capability) in why
    assert loss_scaler("cpu", found).is_enabled() == (expected == "fp16")


@pytest.mark.parametrize(("offered", "expected"), [({"cuda", "mps"}, "cuda"), ({"mps"}, "mps"), (set(), "cpu")])
def test_the_device_is_cuda_or_mps_or_the_cpu(
    monkeypatch: pytest.MonkeyPatch, offered: set[str], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in offered)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in offered)
    assert pick_device("auto") == expected
    assert pick_device("cpu") == "cpu"
    assert native_precision("mps")[0] == "fp32"
    for device in {"cuda", "mps"} - offered:
        with pytest.raises(ValueError, match=f"train.device = '{device}'.*has no {device} device"):
            pick_device(device)


def test_what_a_run_began_with_is_kept_and_what_the_recipe_says_is_obeyed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_cpu(monkeypatch, flags=[], factor=7.5)
    with caplog.at_level(logging.INFO):
        assert choose_precision("auto", "cpu", key="train.precision") == "fp32"
        assert not [record for record in caplog.records if record.levelno == logging.WARNING]
        assert choose_precision("auto", "cpu", key="train.precision", kept="bf16") == "bf16"
        assert "bf16 on cpu (as the run began)" in caplog.text
        assert choose_precision("fp16", "cpu", key="train.precision", kept="bf16") == "fp16"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "emulated on this CPU, a step took 7.5 times as long as in fp32: kept as the run began" in warnings[0]
    assert warnings[1].endswith("a step took 7.5 times as long as in fp32: set train.precision=auto")


def test_the_measurement_is_short_and_positive() -> None:
    assert 0.0 < step_time_relative_to_fp32("bf16") < 1000.0


def precision_of(run: Path) -> dict[str, Any]:
    config = yaml.safe_load((run / "config.yaml").read_text())
    facts = json.loads((run / "model.json").read_text())
    assert facts["device"] == pick_device("auto")
    return {
        "config": config["train"]["precision"],
        "targets": config.get("targets", {}).get("precision"),
        "model": facts["precision"],
    }


@pytest.mark.parametrize(("flags", "factor", "expected"), [([], 9.0, "fp32"), (["avx512_bf16"], 0.5, "bf16")])
def test_the_choice_is_written_everywhere_and_survives_a_resume_on_another_machine(
    edgeembed: Run,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    factor: float,
    expected: str,
) -> None:
    keys = [*TINY, "train.max_steps=2", "eval.every_steps=0"]
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    train = ["teacher-train", "--data", tiny_data, "--recipe", "quickstart", "--out", teacher, *as_options(keys)]
    on_cpu(monkeypatch, flags=flags, factor=factor)
    assert edgeembed(*train).code == 0
    assert precision_of(teacher) == {"config": expected, "targets": None, "model": expected}

    keys = [*TINY_STUDENT, "train.max_steps=2", "eval.every_steps=0", "targets.views=1"]
    distill = ["distill", "--data", tiny_data, "--teacher", teacher, "--recipe", "quickstart", *as_options(keys)]
    assert edgeembed(*distill, "--out", student).code == 0
    assert precision_of(student) == {"config": expected, "targets": expected, "model": expected}
    (store,) = teacher.glob("targets/*/targets.json")
    assert json.loads(store.read_text())["augmentation"]["precision"] == expected

    # The machine changes: a resume keeps the format, another student takes the targets that are there.
    on_cpu(monkeypatch, flags=[] if flags else ["avx512_bf16"], factor=1 / factor)
    for command, run in (([*train], teacher), ([*distill, "--out", student], student)):
        for name in ("model.json", "eval.json"):
            (run / name).unlink()
        if run == teacher:
            facts = (teacher / "model.safetensors").read_bytes()
            assert edgeembed(*command, "--resume").code == 0
            assert (teacher / "model.safetensors").read_bytes() == facts
        else:
            assert edgeembed(*command, "--resume").code == 0
        assert precision_of(run)["config"] == expected
    assert edgeembed(*distill, "--out", tmp_path / "other").code == 0
    assert precision_of(tmp_path / "other")["targets"] == expected
    assert precision_of(tmp_path / "other")["config"] != expected
    assert len(list(teacher.glob("targets/*/targets.json"))) == 1


def test_fp16_trains_with_a_scaled_loss_and_resumes_with_its_scale(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    keys = ["eval.every_steps=0", "train.precision=fp16", "train.epochs=2", "train.checkpoint_every_steps=3"]
    teacher = ["teacher-train", "--data", tiny_data, "--recipe", "quickstart", *as_options([*TINY, *keys])]
    student = ["distill", "--data", tiny_data, "--teacher", tiny_teacher, "--recipe", "quickstart"]
    for name, command in (("teacher", teacher), ("student", [*student, *as_options([*TINY_STUDENT, *keys])])):
        run, resumed = tmp_path / name, tmp_path / f"{name}-resumed"
        assert edgeembed(*command, "--out", run).code == 0
        losses = [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert all(loss < 100 for loss in losses if loss is not None)
        last = json.loads((RunFolder(path=run).checkpoints()[-1] / "state.json").read_text())
        assert last["loss_scale"]["_growth_tracker"] > 0  # steps since the scale last changed
        # As if it had been killed after the first of the two checkpoints.
        shutil.copytree(run, resumed)
        shutil.rmtree(RunFolder(path=resumed).checkpoints()[-1])
        for file in ("model.json", "model.safetensors", "eval.json"):
            (resumed / file).unlink()
        assert edgeembed(*command, "--out", resumed, "--resume").code == 0
        assert (resumed / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
        assert json.loads((RunFolder(path=resumed).checkpoints()[-1] / "state.json").read_text()) == last


def test_a_run_of_an_earlier_version_which_lacks_new_keys_is_resumed(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_teacher, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["optim"]["betas"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    command = ["teacher-train", "--data", tiny_data, "--recipe", "quickstart", "--out", run, *as_options(TINY)]
    assert edgeembed(*command, "--resume").code == 0
    config["optim"]["weight_decay"] = 0.77
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    other = edgeembed(*command, "--resume")
    assert other.code == 2
    assert "optim.weight_decay is 0.77 in the run, " in other.stderr
    for text in (
        "train: [",
        "train: {precision: [bf16]}",
        "train: {precision: 2024-13-45}",
        "",
        "train: {precision: fp8}",
    ):
        (run / "config.yaml").write_text(text)
        damaged = edgeembed(*command, "--resume")
        assert damaged.code == 2
        assert "damaged, train.precision cannot be read" in damaged.stderr


@pytest.mark.parametrize("state", [{"loss_scale": 5}, {"loss_scale": {"scale": 1.0}}, {"loss_scale": [1]}])
def test_a_damaged_scale_is_a_mistake_and_none_is_none(state: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"loss_scale in state\.json is damaged"):
        restore_loss_scale(loss_scaler("cpu", "fp16"), state)
    for without in ({}, {"loss_scale": {}}, None):
        restore_loss_scale(loss_scaler("cpu", "fp16"), without)
    restore_loss_scale(loss_scaler("cpu", "fp32"), {"loss_scale": 5})


def test_a_damaged_store_of_another_precision_is_passed_over(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_teacher, teacher, ignore=shutil.ignore_patterns("targets"))  # of other tests
    keys = as_options([*TINY_STUDENT, "train.max_steps=1", "eval.every_steps=0", "targets.views=1"])
    distill = ["distill", "--data", tiny_data, "--teacher", teacher, "--recipe", "quickstart", *keys]
    assert edgeembed(*distill, "--set", "targets.precision=fp16", "--out", tmp_path / "first").code == 0
    (described,) = teacher.glob("targets/*/targets.json")
    described.write_text('{"augmentation": null}')
    assert edgeembed(*distill, "--out", tmp_path / "second").code == 0
    assert precision_of(tmp_path / "second")["targets"] == native_precision("cpu")[0]


def test_one_step_in_each_format_has_nearly_the_same_loss(edgeembed: Run, tiny_data: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16", "fp16"):
        keys = [*TINY, "eval.every_steps=0", "train.max_steps=1", f"train.precision={precision}"]
        command = ["teacher-train", "--data", tiny_data, "--recipe", "quickstart", "--out", tmp_path / precision]
        assert edgeembed(*command, *as_options(keys)).code == 0
        losses[precision] = json.loads((tmp_path / precision / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.005)
    assert len(set(losses.values())) == 3
