"""The published recipes train as their authors did, by the figures that benchmarks/fidelity.py prints."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/fidelity.py"


@pytest.fixture(scope="module")
def fidelity() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fidelity", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fidelity"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["vit_h14", "eee511", "landmark_2019"])
@pytest.mark.parametrize("steps_per_epoch", [1000, 37_000])
def test_a_recipe_agrees_with_every_published_figure(fidelity: ModuleType, name: str, steps_per_epoch: int) -> None:
    rows = fidelity.figures(name, steps_per_epoch)
    assert {row.what for row in rows} >= set(fidelity.PUBLISHED[name])
    assert [(row.what, row.ours, row.theirs) for row in rows if not row.agrees] == []


def test_a_figure_that_differs_is_reported(fidelity: ModuleType) -> None:
    same = fidelity.Figure(recipe="r", what="w", ours=5.24e-5, theirs=5.237e-5)
    other = fidelity.Figure(recipe="r", what="w", ours=1e-4, theirs=5.237e-5)
    words = fidelity.Figure(recipe="r", what="w", ours="reflect", theirs="black")
    unknown = fidelity.Figure(recipe="r", what="w", ours=0.3, theirs=None)
    assert [row.agrees for row in (same, other, words, unknown)] == [True, False, False, True]


def test_the_script_prints_its_table_as_json() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--json"], stdout=subprocess.PIPE, text=True, check=True)
    rows = json.loads(done.stdout)["figures"]
    assert all(row["agrees"] for row in rows)
    assert {row["recipe"] for row in rows} == {"vit_h14", "eee511", "landmark_2019"}
