"""The shape of the code: short functions, and nothing public that nobody uses."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from vulture import Vulture

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "edgeembed").rglob("*.py"))
MAX_LINES = 100
MAX_LINES_OF_A_LOOP = 130
TRAINING_LOOPS = ("edgeembed/teacher/train.py", "edgeembed/student/distill.py")
REGISTERED_BY = ["@*.command", "@*.callback", "@field_validator", "@model_validator"]
CALLED_BY_LIBRARIES = {"__getattr__", "format_commands", "get_next"}  # Python, click, ONNX Runtime's quantiser
CALLED_BY_THE_REPORT_PAGE = {"map_of_domain"}


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield node


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_function_is_short_enough_to_read_at_once(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    for function in functions(path):
        assert function.end_lineno is not None
        limit = MAX_LINES_OF_A_LOOP if name in TRAINING_LOOPS and function.name == "_train" else MAX_LINES
        lines = function.end_lineno - function.lineno + 1
        assert lines <= limit, f"{name}: {function.name} has {lines} lines, at most {limit} are allowed"


def test_no_function_or_class_is_unused() -> None:
    vulture = Vulture(ignore_decorators=REGISTERED_BY)
    vulture.scavenge([str(ROOT / folder) for folder in ("edgeembed", "tests", "benchmarks", "examples")])
    unused = {
        item.name: f"{Path(item.filename).relative_to(ROOT)}:{item.first_lineno}"
        for item in [*vulture.unused_funcs, *vulture.unused_classes, *vulture.unused_methods, *vulture.unused_props]
        if (ROOT / "edgeembed") in Path(item.filename).parents
    }
    assert {
        name: place for name, place in unused.items() if name not in CALLED_BY_LIBRARIES | CALLED_BY_THE_REPORT_PAGE
    } == {}
