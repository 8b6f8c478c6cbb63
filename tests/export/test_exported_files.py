"""The search for an int8 file: where it ends, which candidate is kept, and when 8-bit weights are tried."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeembed.export import exported_files
from edgeembed.export.exported_files import export_precision
from edgeembed.export.recipe import ExportRecipe, Int8Section

PASSES, REFUSES = {"reasons": (), "not_shown": None}, {"reasons": ("worse",), "not_shown": None}
TOO_FEW = {"reasons": (), "not_shown": "few", "is_within_limit": True, "queries_needed": 300}
NEAR_LIMIT = {"reasons": (), "not_shown": "near", "is_within_limit": True, "queries_needed": None}
ABOVE_LIMIT = {"reasons": (), "not_shown": "few", "is_within_limit": False, "queries_needed": 300}


@pytest.mark.parametrize(
    ("results", "tried", "best"),
    [
        ([REFUSES, PASSES, PASSES], 2, 1),
        ([REFUSES, TOO_FEW, PASSES], 2, 1),  # no file can be shown with so few queries: the fastest is taken
        ([ABOVE_LIMIT, ABOVE_LIMIT, TOO_FEW], 3, 2),
        ([NEAR_LIMIT, REFUSES, PASSES], 3, 2),  # there are enough queries to show less loss
        ([NEAR_LIMIT, NEAR_LIMIT, REFUSES], 3, 0),  # more float need not be better, and costs speed
        ([ABOVE_LIMIT, REFUSES, NEAR_LIMIT], 3, 2),
        ([ABOVE_LIMIT, REFUSES, REFUSES], 3, 0),
        ([REFUSES, REFUSES, REFUSES], 3, 2),
    ],
)
def test_the_search_for_int8_ends_where_a_file_passes_or_no_file_could_be_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, results: list[dict[str, Any]], tried: int, best: int
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(exported_files, "save_onnx", lambda model, _: saved.append(model))
    remaining = iter(results)
    checker: Any = SimpleNamespace(
        check_on_enough_images=lambda *_: SimpleNamespace(gate_result=SimpleNamespace(**next(remaining)))
    )
    candidates: Any = ((number, None) for number in range(len(results)))
    exported = exported_files.write_best(candidates, "int8", tmp_path, checker, search=True)
    assert len(results) - len(list(remaining)) == tried
    assert exported.gate_result == SimpleNamespace(**results[best])
    assert saved[-1] == best  # what is on disk


@pytest.mark.parametrize(
    ("reduce_range", "passing", "tried"),
    [
        ("auto", {True, False}, [True]),
        ("auto", {False}, [True, False]),
        ("auto", set(), [True, False]),
        (True, {False}, [True]),
        (False, {True, False}, [False]),
    ],
)
def test_8_bit_weights_are_tried_only_where_no_file_with_7_bits_passes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reduce_range: Any, passing: set[bool], tried: list[bool]
) -> None:
    requested: list[bool] = []

    def candidates_of(*_: object, reduce_range: bool) -> bool:
        requested.append(reduce_range)
        return reduce_range

    def write_best(reduce_range: bool, *_: object, **__: object) -> Any:
        reasons = () if reduce_range in passing else ("worse",)
        return SimpleNamespace(gate_result=SimpleNamespace(reasons=reasons), reduce_range=reduce_range)

    monkeypatch.setattr(exported_files, "candidates_of", candidates_of)
    monkeypatch.setattr(exported_files, "write_best", write_best)
    recipe = ExportRecipe(int8=Int8Section(reduce_range=reduce_range))
    unused: Any = None
    exported: Any = export_precision(unused, "int8", tmp_path, unused, unused, recipe, search=True)
    assert requested == tried
    assert exported.reduce_range is tried[-1]
