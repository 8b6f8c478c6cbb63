"""Run folders: whole files, logs that survive a kill, the latest run."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from edgeembed.errors import UserError
from edgeembed.files import read_json, write_atomically
from edgeembed.machine import describe_machine, environment, package_versions
from edgeembed.run_folder import RunFolder, latest_run
from edgeembed.signals import stop_request


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    write_atomically(tmp_path / "deep" / "x.txt", "one")
    assert (tmp_path / "deep" / "x.txt").read_text() == "one"
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "deep" / "x.txt", 5)  # type: ignore[arg-type]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.txt"]
    assert (tmp_path / "deep" / "x.txt").read_text() == "one"


@pytest.mark.parametrize(("content", "told"), [("{", "not valid JSON"), ("[1]", "expected a JSON object")])
def test_json_that_is_none_is_refused(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=told):
        read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "missing.json")


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


def test_the_machine_and_versions_are_described() -> None:
    assert describe_machine().cores >= 1
    assert {"python", "numpy", "onnxruntime"} <= set(package_versions())
    assert set(environment()) == {"machine", "versions", "command"}


def test_outside_the_main_thread_a_loop_runs_without_being_told_to_stop() -> None:
    found: list[int | None] = []

    def loop() -> None:
        with stop_request() as request:
            found.append(request.signum)

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    assert found == [None]
