"""The wheel that people install: all of the package and nothing else, and a base without the training stages."""

from __future__ import annotations

import email.message
import email.parser
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from edgeembed.device.embedder import DEFAULT_ARTIFACT

ROOT = Path(__file__).parent.parent
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
BASE = {"numpy", "onnxruntime", "pillow", "pydantic", "safetensors", "typer"}
EXTRAS = {"train", "export", "bench", "openvino", "tensorrt", "weights", "all", "docs", "dev"}


@dataclass(frozen=True, kw_only=True)
class Wheel:
    path: Path
    files: set[str]
    metadata: email.message.Message

    def requirements(self, extra: str | None = None) -> set[str]:
        """Names that the base install asks for, or those that an extra adds; `package[extra]` where it names one."""
        found = set()
        for text in self.metadata.get_all("Requires-Dist") or []:
            requirement = Requirement(text)
            marker = requirement.marker
            if (marker is None) if extra is None else (marker is not None and marker.evaluate({"extra": extra})):
                extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
                found.add(requirement.name.lower() + extras)
        return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    """Built without a network, from a copy: the build leaves folders in the tree, which the next wheel would hold."""
    needed = re.search(r"setuptools>=(\d+)", (ROOT / "pyproject.toml").read_text())
    assert needed is not None
    try:
        present = Version(metadata.version("setuptools"))
    except metadata.PackageNotFoundError:
        present = Version("0")
    if present < Version(needed[1]):
        pytest.skip(f"WHEEL NOT BUILT: setuptools {present}, pyproject.toml asks for {needed[1]}: install it")
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("edgeembed", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=tree, check=True, capture_output=True)
    (path,) = out.iterdir()
    with zipfile.ZipFile(path) as archive:
        files = set(archive.namelist())
        (described,) = (name for name in files if name.endswith(".dist-info/METADATA"))
        facts = email.parser.Parser().parsestr(archive.read(described).decode())
    return Wheel(path=path, files=files, metadata=facts)


def test_one_wheel_serves_every_python_and_platform(wheel: Wheel) -> None:
    assert wheel.path.name.endswith("-py3-none-any.whl")
    assert wheel.metadata["Requires-Python"] == ">=3.10"


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Wheel) -> None:
    package = ROOT / "edgeembed"
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in wheel.files if ".dist-info/" not in name}
    assert held == expected
    assert {"edgeembed/py.typed", "edgeembed/bench/report.html", "edgeembed/export/web/static/index.html"} < held
    for kind in ("recipes/teacher/vit_h14.yaml", f"artifacts/{DEFAULT_ARTIFACT}/bundle.json"):
        assert f"edgeembed/{kind}" in held


def test_the_wheel_brings_its_licence_and_the_command(wheel: Wheel) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.files)
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel.files)


def test_the_base_install_is_the_device_runtime_alone(wheel: Wheel) -> None:
    assert wheel.requirements() == BASE


def test_extras_are_those_of_the_stages_and_all_leaves_out_tensorrt(wheel: Wheel) -> None:
    assert set(wheel.metadata.get_all("Provides-Extra") or []) == EXTRAS
    assert {"torch", "timm", "pyarrow"} < wheel.requirements("train")
    assert wheel.requirements("all") == {"edgeembed[train]", "edgeembed[export]", "edgeembed[bench]"}
    assert "edgeembed[train]" in wheel.requirements("export")
    assert wheel.requirements("bench") == {"faiss-cpu", "jinja2", "matplotlib", "pyarrow", "rich"}
    assert wheel.requirements("openvino") == {"openvino"}
    assert wheel.requirements("tensorrt") == {"tensorrt", "cuda-python", "onnx", "pyyaml", "rich"}


def test_every_line_that_installs_works_in_a_clone_and_names_extras_that_are_there() -> None:
    """The package is not published: `pip install edgeembed` would not find it, or find somebody else's."""
    texts = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
    texts += [*(ROOT / "edgeembed").rglob("*.py"), *(ROOT / "edgeembed").rglob("*.yaml")]
    lines = [line for path in texts for line in path.read_text(encoding="utf-8").splitlines()]
    installing = [line for line in lines if "pip install" in line]
    assert len(installing) > 5
    for line in installing:
        assert not re.search(r"pip install '?edgeembed", line), line
        for named in re.findall(r"'\.\[([\w,]+)\]'", line):
            assert set(named.split(",")) <= EXTRAS, line
