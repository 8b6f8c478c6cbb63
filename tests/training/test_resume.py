"""A run starts, starts again or is resumed; an error names every key and input that differs."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeembed.config import Section, validate
from edgeembed.errors import UserError
from edgeembed.run_folder import RunFolder
from edgeembed.student.recipe import DistillRecipe
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.training.resume import RunInput, begin_run, read_run_recipe, recorded_input

INPUTS = {
    "data": RunInput(id="d1", path="/data/m.parquet"),
    "teacher": RunInput(id="t1", path="/runs/t"),
}


def recipe(kind: type[Section] = DistillRecipe, **sections: Any) -> Section:
    return validate(kind, sections, source="test")


def begin(run: RunFolder, requested: Section, *, resume: bool, inputs: dict[str, RunInput] = INPUTS) -> None:
    begin_run(run, requested, inputs, resume=resume)


def as_json(inputs: dict[str, RunInput]) -> dict[str, Any]:
    return {name: asdict(each) for name, each in inputs.items()}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A student's run with a checkpoint."""
    folder = RunFolder(path=tmp_path / "run")
    begin(folder, recipe(), resume=False)
    (folder.path / "checkpoints" / "step-00000002").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"seed": 5}}, ["train.seed is 0 in the run, 5 requested"]),
        ({"train": {"max_steps": 9}}, ["train.max_steps is None in the run, 9 requested"]),
        (
            {"optim": {"betas": [0.8, 0.9]}, "student": {"name": "vit_b16"}},
            ["student.name is 'mobilenetv4_s' in the run, 'vit_b16' requested", "optim.betas is [0.9, 0.999]"],
        ),
    ],
)
def test_keys_that_differ_are_named_with_both_values(
    run: RunFolder, sections: dict[str, Any], message: list[str]
) -> None:
    before = run.config.read_text()
    with pytest.raises(UserError) as mistake:
        begin(run, recipe(**sections), resume=True)
    for text in message:
        assert text in str(mistake.value)
    assert f"`--resume {run.path}` alone" in str(mistake.value)
    assert run.config.read_text() == before


def test_of_many_keys_the_first_are_named_and_the_others_counted(run: RunFolder) -> None:
    loss = dict.fromkeys(("cosine", "cross_relation", "self_relation", "standardised", "centre_kl", "label"), 3.0)
    with pytest.raises(UserError, match=r"loss\.label is 0\.0 in the run, 3\.0 requested and 2 more: "):
        begin(run, recipe(loss=loss, train={"seed": 1, "epochs": 9}), resume=True)


def test_keys_that_do_not_decide_the_weights_may_differ(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    other = recipe(
        description="x",
        train={"workers": 0, "device": "cpu", "cache": "never", "checkpoint_every_steps": 7, "keep_checkpoints": 1},
        eval={"every_steps": 0, "batch_size": 1},
        targets={"store": "elsewhere", "key": "content"},
    )
    with caplog.at_level(logging.INFO):
        begin(run, other, resume=True)
    assert "train.workers is 2 in the run, 0 requested" in caplog.text
    assert yaml.safe_load(run.config.read_text())["train"]["workers"] == 0


def test_keys_of_stages_are_named(tmp_path: Path) -> None:
    stages = [{"name": "a", "train": {"epochs": 1}}, {"name": "b", "train": {"epochs": 2}}]
    folder = RunFolder(path=tmp_path)
    begin(folder, recipe(TeacherRecipe, stages=stages), resume=False)
    (tmp_path / "checkpoints" / "step-00000002").mkdir(parents=True)
    with pytest.raises(UserError, match=r"stages\.1\.train\.epochs is 2 in the run, 3 requested: "):
        begin(folder, recipe(TeacherRecipe, stages=[stages[0], {"name": "b", "train": {"epochs": 3}}]), resume=True)
    with pytest.raises(UserError, match=r"stages\.1\.name is 'b' in the run, None requested"):
        begin(folder, recipe(TeacherRecipe, stages=stages[:1]), resume=True)


def test_other_data_and_another_teacher_are_named(run: RunFolder) -> None:
    moved = {name: replace(each, path="/moved") for name, each in INPUTS.items()}
    begin(run, recipe(), resume=True, inputs=moved)
    assert recorded_input(run, "data") == Path("/moved")
    others = {name: RunInput(id="x", path="/other") for name in INPUTS}
    message = r"data is d1 \(/moved\) in the run, x \(/other\) requested; teacher is t1 \(/moved\) in the run"
    with pytest.raises(UserError, match=message):
        begin(run, recipe(), resume=True, inputs=others)


def test_a_run_of_an_earlier_version_is_checked_by_its_first_line(run: RunFolder) -> None:
    run.inputs.unlink()
    assert recorded_input(run, "data") is None
    run.config.write_text("# teacher t9, data d1\n" + run.config.read_text())
    with pytest.raises(UserError, match="teacher is t9 in the run, t1"):
        begin(run, recipe(), resume=True)
    run.config.write_text(run.config.read_text().replace("t9", "t1"))
    begin(run, recipe(), resume=True)


def test_data_are_not_compared_with_the_shorter_fingerprint_of_an_earlier_version(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = (
        RunInput(id=digits, path="/data/m.parquet") for digits in ("0123456789abcdef", "0123456789abcdef01234567")
    )
    run.inputs.write_text(json.dumps(as_json({**INPUTS, "data": old})))
    requested = {**INPUTS, "data": new}
    begin(run, recipe(), resume=True, inputs=requested)
    assert "data is 0123456789abcdef (/data/m.parquet) in the run, 0123456789abcdef01234567" in caplog.text
    assert json.loads(run.inputs.read_text()) == as_json(requested)
    with pytest.raises(UserError, match="data is 0123456789abcdef01234567"):
        begin(run, recipe(), resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_without_checkpoints_starts_again_in_its_place(
    tmp_path: Path, resume: bool, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(path=tmp_path)
    begin(run, recipe(train={"seed": 1}), resume=False)
    (tmp_path / "checkpoints" / ".step-00000002.99").mkdir(parents=True)  # killed within its first checkpoint
    (tmp_path / ".99-abc.tmp").touch()
    begin(run, recipe(train={"seed": 2}), resume=resume, inputs={"data": RunInput(id="x", path=None)})
    assert "holds a run without checkpoints: starting again" in caplog.text
    assert yaml.safe_load(run.config.read_text())["train"]["seed"] == 2
    names = {path.name for path in tmp_path.rglob("*")}
    assert names == {"checkpoints", "config.yaml", "environment.json", "inputs.json"}


def test_a_run_with_checkpoints_or_a_result_does_not_start_again(run: RunFolder) -> None:
    with pytest.raises(UserError, match="holds a run already: add --resume to continue it"):
        begin(run, recipe(), resume=False)
    (run.path / "checkpoints" / "step-00000002").rmdir()
    run.model_json.write_text("{}")
    with pytest.raises(UserError, match="holds a finished run already: choose another --out"):
        begin(run, recipe(), resume=False)
    run.config.unlink()  # an ensemble has none
    with pytest.raises(UserError, match="holds a finished run already"):
        begin(run, recipe(), resume=False)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no such run to resume"),
        (["run/"], r"holds no run to resume \(no config.yaml\)"),
        (["run/notes.txt"], r"holds no run to resume \(no config.yaml\)"),
    ],
)
def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    with pytest.raises(UserError, match=message):
        begin(RunFolder(path=tmp_path / "run"), recipe(), resume=True)
    assert (tmp_path / "run").exists() == bool(files)


def test_the_recipe_of_a_run_is_read_and_changed(run: RunFolder) -> None:
    assert read_run_recipe(run, DistillRecipe, []) == recipe()
    assert read_run_recipe(run, DistillRecipe, ["train.seed=3"]) == recipe(train={"seed": 3})
    with pytest.raises(UserError, match=r"unknown key 'train\.sed': did you mean 'train\.seed'"):
        read_run_recipe(run, DistillRecipe, ["train.sed=3"])
    for damaged in ("train: [", "", "- 1"):
        run.config.write_text(damaged)
        with pytest.raises(UserError, match="damaged, holds no recipe"):
            read_run_recipe(run, DistillRecipe, [])


def test_inputs_are_written_for_people_and_machines(run: RunFolder) -> None:
    assert json.loads(run.inputs.read_text()) == {
        "data": {"id": "d1", "path": "/data/m.parquet"},
        "teacher": {"id": "t1", "path": "/runs/t"},
    }
    assert recorded_input(run, "teacher") == Path("/runs/t")
    run.inputs.write_text('{"teacher": 5}')
    assert recorded_input(run, "teacher") is None


@pytest.mark.parametrize(
    ("requested", "holds", "message"),
    [
        (DistillRecipe, TeacherRecipe, "holds a teacher run: `edgeembed teacher-train --resume "),
        (TeacherRecipe, DistillRecipe, "holds a student run: `edgeembed distill --resume "),
    ],
)
def test_the_command_of_a_run_of_the_other_kind_is_named(
    tmp_path: Path, requested: type[Section], holds: type[Section], message: str
) -> None:
    folder = RunFolder(path=tmp_path / "run")
    begin(folder, recipe(holds), resume=False)
    with pytest.raises(UserError, match=message):
        read_run_recipe(folder, requested, [])
