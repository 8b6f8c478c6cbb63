"""Recipes on the command line: shown so that they can be saved and used, and options that are recipe keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeembed.config import load_recipe
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
    ("command", "told"),
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
def test_an_option_that_is_a_recipe_key_says_how_it_is_set(edgeembed: Run, command: str, told: str) -> None:
    outcome = edgeembed(*command.split())
    assert outcome.code == 2
    assert told in outcome.stderr
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["students --epochs 3", "distill --nothing-like-it 3", "--epochs 3"])
def test_other_unknown_options_stay_unknown(edgeembed: Run, command: str) -> None:
    outcome = edgeembed(*command.split())
    assert outcome.code == 2
    assert "--set" not in outcome.stderr
