"""A folder of the wrong kind is an error that names its kind, before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeembed.device.embedder import default_bundle
from edgeembed.errors import UserError
from edgeembed.run_folder import describe_folder, require_run, require_teacher
from tests.conftest import Outcome

Run = Callable[..., Outcome]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of each kind, with the file by which it is known; and the working directory."""
    held = {
        "student/model.json": json.dumps({"role": "student", "teacher": {"path": "runs/teacher"}}),
        "teacher/model.json": json.dumps({"role": "teacher"}),
        "unfinished/config.yaml": "",
        "imported/source.json": "{}",
        "imported/targets.json": "{}",
        "store/targets.json": "{}",
        "photos/a.jpg": "",
        "file": "",
    }
    for name, text in held.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("student", "a finished student run"),
        ("teacher", "a finished teacher run"),
        ("unfinished", "an unfinished run"),
        ("imported", "imported embeddings"),
        ("store", "a store of teacher embeddings"),
        ("photos", "a folder without a run or a bundle"),
        ("file", "a file"),
        ("nowhere", "no such file or folder"),
        (str(default_bundle()), "a bundle"),
    ],
)
@pytest.mark.usefixtures("folders")
def test_each_kind_of_folder_is_known(name: str, what: str) -> None:
    assert describe_folder(Path(name)) == what
    if name != "teacher":
        with pytest.raises(UserError, match=what):
            require_run(Path(name), role="teacher")


@pytest.mark.usefixtures("folders")
def test_a_student_learns_from_a_teacher_run_or_imported_embeddings_only() -> None:
    require_teacher(Path("teacher"))
    require_teacher(Path("imported"))
    for name in ("student", "unfinished", "photos"):
        with pytest.raises(UserError):
            require_teacher(Path(name))


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--teacher", "student"], "student: is a finished student run, expected a teacher run: it was "),
        (["bench", "--teacher", "imported"], "imported: holds no finished run (imported embeddings)"),
        (["bench", "--teacher", "unfinished"], "unfinished: holds no finished run (an unfinished run)"),
        (["distill", "--teacher", "student"], "it was distilled from runs/teacher"),
        (["distill", "--teacher", "photos"], "photos: holds no finished run (a folder without a run or a bundle)"),
        (["targets", "build", "--teacher", "student"], "it was distilled from runs/teacher"),
        (["targets", "verify", "--teacher", "nowhere"], "nowhere: holds no finished run (no such file or folder)"),
        (["export", "unfinished"], "finish it with --resume"),
        (["export", "photos"], "photos: holds no finished run (a folder without a run or a bundle)"),
        (["embed", "photos", "--model", "unfinished"], "unfinished: not a bundle (an unfinished run)"),
        (["embed", "photos", "--model", "photos"], "photos: not a bundle (a folder without a run or a bundle)"),
        (["bench", "teacher"], "teacher: not a bundle (a finished teacher run)"),
        (["artifacts", "verify", "imported"], "imported: not a bundle (imported embeddings)"),
    ],
    ids=str,
)
def test_a_folder_of_the_wrong_kind_is_one_line_that_names_its_kind(
    edgeembed: Run, arguments: list[str], message: str
) -> None:
    outcome = edgeembed(*arguments)
    assert (outcome.code, outcome.stdout, outcome.stderr.count("\n")) == (2, "", 1)
    assert outcome.stderr.startswith("error: ")
    assert message in outcome.stderr


@pytest.mark.usefixtures("folders")
def test_the_error_comes_before_torch_is_imported() -> None:
    code = """
import sys
from edgeembed.cli import run

for command in ("bench", "distill", "targets build", "targets verify"):
    assert run([*command.split(), "--teacher", "student"]) == 2
assert run(["export", "photos"]) == 2
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
