"""Help texts, global options before and after the command, completion, and suggestions for mistyped names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from edgeembed import __version__
from edgeembed.cli import app as app_module
from edgeembed.cli.app import as_json_value, global_options_first, print_json
from edgeembed.cli.help import PANELS
from edgeembed.data.synthetic import render_view
from tests.conftest import Outcome

Run = Callable[..., Outcome]


def all_commands() -> list[list[str]]:
    """The words of every command and group of commands."""
    root = typer.main.get_group(app_module.app)
    found: list[list[str]] = [[]]
    for name, command in root.commands.items():
        found.append([name])
        found += [[name, sub] for sub in getattr(command, "commands", {})]
    return found


def real_process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeembed", *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_every_help_is_plain_ascii_under_the_name_of_the_program(edgeembed: Run, words: list[str]) -> None:
    outcome = edgeembed(*words, "--help")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout.isascii()
    assert outcome.stdout.startswith(f"Usage: {' '.join(['edgeembed', *words])} ")


def test_without_arguments_the_commands_stand_under_the_headings_of_the_work(edgeembed: Run) -> None:
    outcome = edgeembed()
    assert (outcome.code, outcome.stdout) == (0, edgeembed("--help").stdout)
    headings = [line.rstrip(":") for line in outcome.stdout.splitlines() if line[:1].strip() and line.endswith(":")]
    assert headings == ["Options", *PANELS]
    assert "..." not in outcome.stdout.partition("Options:")[2]  # no sentence is cut off


def test_every_command_has_its_heading() -> None:
    listed = sorted(name for names in PANELS.values() for name in names)
    assert sorted(typer.main.get_group(app_module.app).commands) == listed


@pytest.mark.parametrize("group", ["data", "targets"])
def test_a_group_without_a_command_prints_its_help(edgeembed: Run, group: str) -> None:
    outcome = edgeembed(group)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "Commands:" in outcome.stdout


@pytest.mark.parametrize("arguments", [["--version"], ["-v"], ["--verbose"], ["embed", "--version"]])
def test_the_version_is_one_line(edgeembed: Run, arguments: list[str]) -> None:
    assert edgeembed(*arguments) == Outcome(0, f"edgeembed {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serch"], "unknown edgeembed command 'serch': did you mean 'search'?"),
        (["zzz"], "unknown edgeembed command 'zzz': choose one of artifacts, bench, data, "),
        (["data", "imprt"], "unknown edgeembed data command 'imprt': did you mean 'import'?"),
        (["embed", "x", "--modle", "y"], "unknown option '--modle': did you mean --model? `edgeembed embed --help`"),
        (["embed", "x", "--quite"], "unknown option '--quite': did you mean --quiet? `edgeembed embed --help`"),
        (["students", "--zzzzz"], "unknown option '--zzzzz': `edgeembed students --help` lists all"),
        (["embed"], "Missing argument 'PATH': `edgeembed embed --help` says what is expected"),
        (["teacher-train"], "--data is missing: name a manifest, as `edgeembed data import` writes one"),
        (["targets", "import", "x", "--out", "y"], "Missing option '--data': `edgeembed targets import --help`"),
        (["embed", "x", "--threads", "two"], "Invalid value 'two' for '--threads'"),
        (["search", "x", "-k", "0"], "Invalid value '0' for '-k'"),
        (["embed", "x", "--out"], "Option '--out' requires an argument"),
        (["embed", "x", "--json=3"], "Option '--json' does not take a value"),
        (["embed", "x", "--quiet", "-v"], "--quiet and --verbose: expected one of them at most"),
        (["--quiet"], "Missing command: `edgeembed --help` says what is expected"),
        (["embed", "--", "--quiet"], "--quiet: no such file or folder"),
    ],
)
def test_wrong_usage_is_one_line_with_the_value_and_the_remedy(
    edgeembed: Run, arguments: list[str], message: str
) -> None:
    outcome = edgeembed(*arguments)
    assert (outcome.code, outcome.stdout, outcome.stderr.count("\n")) == (2, "", 1)
    assert outcome.stderr.startswith("error: ")
    assert message in outcome.stderr


def test_global_options_work_on_either_side_of_the_command(tmp_path: Path) -> None:
    render_view(seed=0, instance=0, view=0, size_px=48).save(tmp_path / "a.png")
    command = ["embed", tmp_path / "a.png", "--out", tmp_path / "e.safetensors", "--threads", 1]
    usual = real_process(*command)
    assert (usual.returncode, usual.stdout) == (0, "")
    assert "1 embeddings, 0 files skipped" in usual.stderr
    quiet = real_process(*command, "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    lines = real_process("-v", *command).stderr.splitlines()
    assert f"DEBUG edgeembed.cli.app: edgeembed {__version__}, Python" in lines[0]
    assert "INFO edgeembed.cli.embed: " in lines[-1]


def test_global_options_stand_first_wherever_they_were_written() -> None:
    assert global_options_first(["embed", "x", "--quiet"]) == ["--quiet", "embed", "x"]
    assert global_options_first(["data", "-v", "check", "--debug", "m"]) == ["-v", "--debug", "data", "check", "m"]
    assert global_options_first(["embed", "--quiet", "--", "--debug"]) == ["--quiet", "embed", "--", "--debug"]


def test_the_shell_completes_commands_recipes_bundles_and_runs(tmp_path: Path) -> None:
    (tmp_path / "bundles" / "mine").mkdir(parents=True)
    (tmp_path / "bundles" / "mine" / "bundle.json").touch()
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    (tmp_path / "runs" / "teacher" / "model.json").touch()

    expected = {
        "edgeembed te": ["teacher-train", "teacher-import", "teacher-join"],
        "edgeembed recipes show vi": ["vit_h14"],
        "edgeembed distill --recipe gro": ["grocery_cpu"],
        "edgeembed bench bund": ["bundles/mine"],
        "edgeembed embed x --model ": ["bundles/mine", "runs/teacher"],
        "edgeembed export ru": ["runs/teacher"],
    }
    code = f"""
import os, sys
from edgeembed.cli import run

os.environ["_EDGEEMBED_COMPLETE"] = "complete_bash"
for line in {list(expected)}:
    os.environ.update(COMP_WORDS=line, COMP_CWORD=str(line.count(" ")))
    print(f"> {{line}}", flush=True)
    try:
        run([])
    except SystemExit:
        pass
assert not {{"torch", "numpy"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    offered = [part.split("\n", 1) for part in done.stdout.split("> ")[1:]]
    assert {line: names.split() for line, names in offered} == expected
    script = real_process("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "complete_bash" in script.stdout


def test_json_has_null_where_there_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"map": float("nan"), "rows": [{"p50": float("inf")}, (1.5, -float("inf"))], "none": None})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"map": None, "rows": [{"p50": None}, [1.5, None]], "none": None}
    assert as_json_value({"写": "\udce5\udc86\udc99"}) == {"写": "写"}  # a name that an ASCII locale did not decode


@pytest.mark.parametrize(
    "arguments",
    [
        ["artifacts", "--json"],
        ["artifacts", "list", "--json"],
        ["artifacts", "verify", "--json"],
        ["recipes", "--json"],
        ["recipes", "list", "--json"],
        ["data", "sources", "--json"],
        ["doctor", "--no-measure", "--json"],
    ],
    ids=" ".join,
)
def test_json_is_one_object_alone_on_stdout(edgeembed: Run, arguments: list[str]) -> None:
    outcome = edgeembed(*arguments)
    assert outcome.code == 0, outcome.stderr
    assert isinstance(json.loads(outcome.stdout), dict)
    assert (outcome.stdout.count("\n"), outcome.stdout.isascii()) == (1, True)
