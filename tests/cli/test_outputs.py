"""Output paths are checked before any work: a wrong one is one line and exit code 2, and nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Outcome

Run = Callable[..., Outcome]

# Every command that writes files. The other arguments are wrong too: the output path must be the first error.
COMMANDS = {
    "teacher-train": "teacher-train --data nothing.parquet --out OUT",
    "teacher-import": "teacher-import timm:test_resnet --data nothing.parquet --out OUT",
    "teacher-join": "teacher-join a b --out OUT",
    "distill": "distill --teacher nothing --data nothing.parquet --out OUT",
    "targets-import": "targets import nothing.parquet --data nothing.parquet --out OUT",
    "targets-build": "targets build --teacher nothing --set targets.store=OUT",
    "distill-store": "distill --teacher nothing --out run --set targets.store=OUT",
    "export": "export nothing --out OUT",
    "web": "export nothing --web OUT",
    "bench": "bench nothing --out OUT",
    "quickstart": "quickstart --out OUT",
    "synth": "data synth OUT",
    "import": "data import folder nothing --out OUT.parquet",
    "import-csv": "data import folder nothing --out OUT.csv",
    "prepare": "data prepare nothing.parquet --out OUT.parquet",
    "embed": "embed nothing --out OUT.safetensors",
    "sheet": "search nothing --sheet OUT.png",
    "pack": "artifacts pack nothing --out OUT.zip",
    "unpack": "artifacts unpack nothing.zip --out OUT",
}
OPTIONS = {
    "web": "--web",
    "sheet": "--sheet",
    "synth": "folder",
    "targets-build": "targets.store",
    "distill-store": "targets.store",
}


def arguments(command: str, out: str) -> list[str]:
    return [word.replace("OUT", out) for word in COMMANDS[command].split()]


@pytest.mark.parametrize("out", ["taken/x", "taken/deep/x", "new/" + "n" * 300, "n" * 300 + "/x"])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_path_that_cannot_be_written_is_the_first_error(
    edgeembed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    outcome = edgeembed("--quiet", *arguments(command, out))
    assert outcome.code == 2
    (message,) = outcome.stderr.splitlines()
    assert message.startswith(f"error: {out}")
    assert "cannot be written (taken is not a folder)" in message or "File name too long" in message
    option = OPTIONS.get(command, "--out")
    assert message.endswith(f"choose another {option}")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_in_place_of_a_folder_and_a_folder_in_place_of_a_file_are_refused(
    edgeembed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = next(word for word in COMMANDS[command].replace("=", " ").split() if "OUT" in word).replace("OUT", "x")
    writes_file = "." in name
    (tmp_path / name).mkdir() if writes_file else (tmp_path / name).touch()
    outcome = edgeembed("--quiet", *arguments(command, "x"))
    assert outcome.code == 2
    message = f"{name}: is a folder, expected a file name" if writes_file else f"{name}: is a file, expected a folder"
    assert outcome.stderr.startswith(f"error: {message}")


def test_output_paths_are_checked_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    code = (
        "import json, sys; from edgeembed.cli import run\n"
        "codes = [run(['--quiet', *one]) for one in json.loads(sys.argv[1])]\n"
        "print(json.dumps([codes, 'torch' in sys.modules]))\n"
    )
    commands = json.dumps([arguments(command, "taken/x") for command in COMMANDS])
    done = subprocess.run([sys.executable, "-c", code, commands], cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(done.stdout) == [[2] * len(COMMANDS), False]
