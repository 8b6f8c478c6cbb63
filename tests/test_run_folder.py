"""Run folders: logs that survive a kill, checks of a path that should be a run, the latest run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgeembed.errors import UserError
from edgeembed.run_folder import RunFolder, describe_folder, latest_run, require_run, require_teacher


def test_lines_after_the_checkpoint_and_torn_ones_are_forgotten(tmp_path: Path) -> None:
    run = RunFolder(path=tmp_path)
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 0.5})
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    run.drop_metrics_after(2)
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2]


def test_the_latest_finished_run_of_a_role_is_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `edgeembed teacher-train` first"):
        latest_run("teacher", tmp_path)
    for number, (name, role) in enumerate([("a", "teacher"), ("sub/b", "teacher"), ("c", "student")]):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.json").write_text(json.dumps({"role": role}))
        os.utime(tmp_path / name / "model.json", (number, number))
    assert latest_run("teacher", tmp_path) == tmp_path / "sub/b"
    assert latest_run("student", tmp_path) == tmp_path / "c"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("bundle.json", "{}", "a bundle"),
        ("source.json", "{}", "imported embeddings"),
        ("targets.json", "{}", "a store of teacher embeddings"),
        ("config.yaml", "", "an unfinished run"),
        ("model.json", '{"role": "student", "teacher": {"path": "runs/t"}}', "a finished student run"),
        ("notes.txt", "", "a folder without a run or a bundle"),
    ],
)
def test_a_folder_that_is_no_teacher_run_is_described(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    assert describe_folder(tmp_path) == told
    with pytest.raises(UserError, match=told):
        require_run(tmp_path, role="teacher")


def test_paths_that_are_no_folder_are_described(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert describe_folder(tmp_path / "x") == "a file"
    assert describe_folder(tmp_path / "y") == "no such file or folder"


def test_a_student_is_refused_as_a_teacher_by_the_name_of_its_teacher(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"role": "student", "teacher": {"path": "runs/t"}}')
    with pytest.raises(UserError, match="expected a teacher run: it was distilled from runs/t"):
        require_teacher(tmp_path)
    require_run(tmp_path, role="student")
    require_run(tmp_path)
    (tmp_path / "targets.json").write_text("{}")
    require_teacher(tmp_path)  # a store of teacher embeddings
