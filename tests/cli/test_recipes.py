"""Recipes on the command line: shown so that they can be saved and used, and options that are recipe keys."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeembed.cli.recipes import KINDS, header_of
from edgeembed.config import load_recipe, recipe_names, recipe_text
from edgeembed.teacher.recipe import TeacherRecipe
from tests.conftest import Outcome

Run = Callable[..., Outcome]


@pytest.mark.parametrize("name", ["eee511", "quickstart"])
def test_a_shown_recipe_can_be_saved_edited_and_used(edgeembed: Run, tmp_path: Path, name: str) -> None:
    shown = edgeembed("recipes", "show", name, "--kind", "teacher")
    assert shown.code == 0
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("  checkpoint_every_steps:")]
    assert line.endswith("(integer, at least 0" + (")" if name == "eee511" else "; default: 1000)"))
    edited = shown.stdout.replace(line, "  checkpoint_every_steps: 77")
    (tmp_path / "mine.yaml").write_bytes(edited.encode("utf-16"))
    recipe = load_recipe(TeacherRecipe, kind="teacher", name=str(tmp_path / "mine.yaml"))
    same = load_recipe(TeacherRecipe, kind="teacher", name=name, overrides=["train.checkpoint_every_steps=77"])
    assert recipe == same
    assert "checkpoint_every_steps: 77" in edgeembed("recipes", "show", tmp_path / "mine.yaml").stdout


def test_recipes_are_shown_as_json_too(edgeembed: Run) -> None:
    shown = json.loads(edgeembed("recipes", "show", "default", "--json").stdout)
    assert set(shown) == {"name", "student", "export"}
    assert shown["student"]["train.batch_size"]["allowed"] == "integer, at least 1"
    assert shown["student"]["train.batch_size"]["description"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("teacher-train --data m.csv --epochs 3", "'--epochs': recipe keys are set with --set train.epochs=3"),
        ("teacher-train --data m.csv --batch-size=8", "--set train.batch_size=8"),
        ("teacher-train --data m.csv --head.margin 0.2", "--set head.margin=0.2"),
        ("distill --lr 0.1", "--set optim.lr=0.1"),
        ("distill --max-steps", "--set train.max_steps=VALUE"),
        ("targets build --size-px 96", "--set image.size_px=96"),
        ("export run --percentile 99", "--set int8.percentile=99"),
    ],
)
def test_an_option_named_like_a_recipe_key_suggests_set(edgeembed: Run, command: str, message: str) -> None:
    outcome = edgeembed(*command.split())
    assert outcome.code == 2
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("students --epochs 3", "unknown option '--epochs': `edgeembed students --help` lists all"),
        ("distill --nothing-like-it 3", "unknown option '--nothing-like-it': `edgeembed distill --help` lists all"),
        ("--epochs 3", "unknown option '--epochs': `edgeembed --help` lists all"),
    ],
)
def test_other_unknown_options_stay_unknown(edgeembed: Run, command: str, message: str) -> None:
    outcome = edgeembed(*command.split())
    assert (outcome.code, outcome.stderr) == (2, f"error: {message}\n")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in recipe_names(kind)])
def test_a_recipe_opens_with_command_hardware_time_and_expected_result(kind: str, name: str) -> None:
    header = list(header_of(recipe_text(kind, name)))
    fields = [line.split()[1] for line in header if re.match(r"# [A-Z][a-z]+: ", line)]
    assert [field for field in fields if field != "Data:"][-4:] == ["Command:", "Hardware:", "Time:", "Expect:"]
    title = header[0].removeprefix("# ")
    assert title.startswith(kind.capitalize())
