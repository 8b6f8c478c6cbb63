"""The command line: one-line errors, exit codes, light imports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Outcome

Run = Callable[..., Outcome]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["teacher-trian"], "did you mean 'teacher-train'?"),
        (["teacher-train"], "--data is missing: name a manifest"),
        (["teacher-train", "--data", "x.parquet", "--bogus"], "unknown option '--bogus'"),
        (["teacher-train", "--data", "nowhere.parquet"], "nowhere.parquet: no such manifest"),
        (["teacher-train", "--data", "x", "--recipe", "vit_h41"], "did you mean 'vit_h14'"),
        (["teacher-train", "--data", "x", "--set", "head.margn=1"], "did you mean 'head.margin'"),
        (["data", "import", "groceries", "."], "did you mean 'grocery'"),
        (["data", "synth", "x", "--instances", "1"], "num_instances is 1: expected at least 5"),
        (["recipes", "show", "nothing"], "unknown recipe 'nothing'"),
        (["export", "nowhere"], "nowhere: holds no finished run (no such file or folder)"),
        (["bench", "nowhere"], "nowhere: not a bundle (no such file or folder)"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    edgeembed: Run, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = edgeembed(*arguments)
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("error: ")
    assert message in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1


def test_debug_shows_where_before_the_same_line_and_exit_code(edgeembed: Run) -> None:
    outcome = edgeembed("teacher-train", "--data", "nowhere.parquet", "--debug")
    assert outcome.code == 2
    assert outcome.stderr.startswith("Traceback")
    assert outcome.stderr.splitlines()[-1].startswith("error: nowhere.parquet: no such manifest")


def test_help_version_and_usage_errors_import_nothing_heavy() -> None:
    code = """
import sys
from edgeembed.cli import run

heavy = {"torch", "timm", "pyarrow", "onnxruntime", "numpy", "yaml"}
assert [run(arguments) for arguments in (["--help"], [], ["--version"], ["-v"])] == [0, 0, 0, 0]
assert not heavy & set(sys.modules) | {"pydantic"} & set(sys.modules), sys.modules
assert [run(arguments) for arguments in (["embed", "--help"], ["tech"], ["embed", "x", "--bogus"])] == [0, 2, 2]
assert not heavy & set(sys.modules), sys.modules  # newer versions of Typer check values with pydantic
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_recipes_are_listed_and_shown(edgeembed: Run) -> None:
    listed = json.loads(edgeembed("recipes", "list", "--json").stdout)
    assert "vit_h14" in listed["teacher"]
    shown = edgeembed("recipes", "show", "vit_h14").stdout
    assert (
        "# 1. everything: 2 epochs; images of 224 x 224 pixels, batches of 192; learning rates: backbone 1e-07, neck"
        in shown
    )
    assert "# 2. neck and head: 1 epoch; images of" in shown
    assert "learning rates: neck 9.21e-05, head 9.21e-05; arcface margin 0.5" in shown
    assert "Command:" in shown
    assert "quickstart" in edgeembed("recipes").stdout


def test_a_recipe_file_is_shown(edgeembed: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("head: {class_margins: [0.05, 0.5]}\nstages: [{name: first, train: {epochs: 2}}]\n")
    shown = edgeembed("recipes", "show", path)
    assert shown.code == 0, shown.stderr
    assert "# 1. first: 2 epochs" in shown.stdout
    assert "arcface margin 0.05 to 0.5 by the size of the class" in shown.stdout
    path.write_text("student: {name: vit_b16}\n")
    assert "# --- student recipe" in edgeembed("recipes", "show", path).stdout


def test_doctor_describes_the_machine(edgeembed: Run) -> None:
    found = json.loads(edgeembed("doctor", "--no-measure", "--json").stdout)
    assert found["machine"]["cores"] >= 1
    assert "torch" in found["versions"]
    printed = edgeembed("doctor", "--no-measure").stdout
    assert f"{found['machine']['cores']} cores" in printed
    assert "tensorrt" in printed


def test_data_commands_go_from_images_to_a_checked_manifest(edgeembed: Run, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    rendered = edgeembed("data", "synth", folder, "--instances", 10, "--views", 4, "--size-px", 48, "--json")
    assert json.loads(rendered.stdout)["images"] == 40
    manifest = folder / "manifest.parquet"
    checked = edgeembed("data", "check", manifest)
    assert (checked.code, checked.stdout) == (
        0,
        f"{manifest}: all 40 images can be read, and none is in two splits\n",
    )
    assert json.loads(edgeembed("data", "stats", manifest, "--json").stdout)["images"] == 40
    prepared = edgeembed("data", "prepare", manifest, "--out", tmp_path / "p.parquet", "--resample-to", 8, "--json")
    counts = json.loads(prepared.stdout)
    assert counts["images"] == 28
    assert counts["visits"] == 8 * counts["classes"] == 56
    imported = edgeembed("data", "import", "folder", folder / "images", "--out", tmp_path / "f.parquet", "--json")
    assert json.loads(imported.stdout)["images"] == 40
    first, second = sorted(folder.glob("images/**/*.jpg"))[:2]
    first.write_bytes(first.read_bytes()[:200])
    second.unlink()
    failed = edgeembed("data", "check", manifest)
    assert failed.code == 1
    assert "2 of 40 images cannot be read" in failed.stderr
