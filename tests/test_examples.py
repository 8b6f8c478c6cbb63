"""The examples run: all stages and the device side in Python, the notebook, and other languages on a device."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgeembed
from edgeembed import Embedder
from edgeembed.export.web.runtime import VERSION as ONNX_RUNTIME_WEB

ROOT = Path(edgeembed.__file__).parents[1]
EXAMPLES = ROOT / "examples"
DEPLOYMENT = EXAMPLES / "deployment"
PHOTO = ROOT / "docs" / "preprocessing" / "photo.jpg"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}


def run(*command: object, cwd: Path) -> str:
    """What a program prints; fails with its errors where it does not end with 0."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def all_stages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the example writes, and what it prints."""
    folder = tmp_path_factory.mktemp("all_stages")
    return folder, run(sys.executable, EXAMPLES / "train_and_search.py", folder, "--tiny", cwd=folder)


def test_all_stages_in_python(all_stages: tuple[Path, str]) -> None:
    folder, printed = all_stages
    report = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    assert {row["role"] for row in report["rows"]} == {"teacher", "student"}
    assert "share the embedding space" in printed
    found = [line.split() for line in printed.splitlines()[-3:]]
    assert all(0.0 < float(similarity) <= 1.001 and Path(path).is_file() for similarity, path in found)


def test_searching_photographs_needs_no_torch(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, name in enumerate(("photo.jpg", "reduced.png", "tall.png", "palette.png", "turned.jpg", "grey.png")):
        shutil.copy(ROOT / "docs" / "preprocessing" / name, photos / f"{number}_{name}")
    program = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "assert 'torch' not in sys.modules"
    )
    example = EXAMPLES / "search_my_photos.py"
    lines = run(sys.executable, "-c", program, example, photos, PHOTO, "i.safetensors", cwd=tmp_path).splitlines()
    assert len(lines) == 5
    similarity, path = lines[0].split()
    assert Path(path).name == "0_photo.jpg"  # the query itself
    assert float(similarity) == pytest.approx(1.0, abs=1e-3)
    again = run(sys.executable, "-c", program, example, photos, PHOTO, "i.safetensors", cwd=tmp_path)
    assert again.splitlines() == lines  # from the file


def test_the_notebook_shows_the_rows_of_a_report(
    all_stages: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEEMBED_REPORT", str(all_stages[0] / "report" / "report.json"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    notebook = json.loads((EXAMPLES / "report.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        assert cell.get("outputs", []) == []  # stored without results, so that none is out of date
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "report.ipynb", "exec"), names)
    printed = capsys.readouterr().out
    assert {row["runtime"] for row in names["rows"]} >= {"torch", "onnxruntime"}
    assert len(names["axes"].collections) == len(names["rows"])
    assert all(f"{row['latency_ms']['p50']:.2f} ms" in printed for row in names["rows"])


@pytest.fixture(scope="module")
def fp32() -> Embedder:
    return Embedder(precision="fp32", runtime="onnxruntime")


@pytest.fixture(scope="module")
def ppm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ppm") / "photo.ppm"
    with Image.open(PHOTO) as image:
        image.convert("RGB").save(path)
    return path


def test_onnx_runtime_alone_gives_the_embeddings_of_the_embedder(fp32: Embedder, tmp_path: Path) -> None:
    photos = [PHOTO, PHOTO.with_name("turned.png"), PHOTO.with_name("alpha.png")]
    lines = run(sys.executable, DEPLOYMENT / "embed.py", fp32.file, *photos, cwd=tmp_path).splitlines()
    embedding_ND = np.array([line.split()[1:] for line in lines], np.float32)
    assert np.abs(embedding_ND - fp32.embed(photos)).max() < 1e-5


HARNESS = """
#include <cstdio>
#include <cstdlib>
#include "resize.hpp"
int main(int, char** words) {
  edgeembed::Image source{std::atoi(words[1]), std::atoi(words[2]), {}};
  source.rgb.resize(size_t{3} * source.width * source.height);
  if (std::fread(source.rgb.data(), 1, source.rgb.size(), stdin) != source.rgb.size()) return 1;
  const auto target = edgeembed::resize(source, std::atoi(words[3]), std::atoi(words[4]));
  std::fwrite(target.rgb.data(), 1, target.rgb.size(), stdout);
}
"""


def test_the_resize_in_cpp_gives_the_pixels_of_pillow(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("C++ NOT COMPILED: no g++")
    (tmp_path / "harness.cpp").write_text(HARNESS, encoding="utf-8")
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{DEPLOYMENT}"]
    run("g++", *flags, "harness.cpp", "-o", "harness", cwd=tmp_path)
    rng = np.random.default_rng(0)
    for width, height, shape in [
        (348, 348, (144, 144)),
        (97, 501, (144, 96)),
        (100, 50, (144, 144)),
        (37, 90, (8, 12)),
    ]:
        image_HWC = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        command = ["./harness", *map(str, (width, height, *shape))]
        done = subprocess.run(command, cwd=tmp_path, input=image_HWC.tobytes(), capture_output=True, check=True)
        found_HWC = np.frombuffer(done.stdout, np.uint8).reshape(*shape, 3)
        expected_HWC = np.asarray(Image.fromarray(image_HWC).resize(shape[::-1], Image.Resampling.BILINEAR))
        assert np.array_equal(found_HWC, expected_HWC), (width, height, shape)


def test_cpp_gives_the_embeddings_of_the_embedder(fp32: Embedder, ppm: Path, tmp_path: Path) -> None:
    runtime = os.environ.get("ONNXRUNTIME_DIR", "")
    if not Path(runtime, "include").is_dir() or shutil.which("g++") is None:
        pytest.skip("C++ EXAMPLE NOT COMPILED: set ONNXRUNTIME_DIR to a release of ONNX Runtime for C++")
    linked = [f"-I{runtime}/include", f"-L{runtime}/lib", f"-Wl,-rpath,{runtime}/lib", "-lonnxruntime"]
    run("g++", "-std=c++17", "-O2", DEPLOYMENT / "embed.cpp", *linked, "-o", "embed", cwd=tmp_path)
    found_D = np.array(run(tmp_path / "embed", fp32.file, ppm, cwd=tmp_path).split(), np.float32)
    assert float(found_D @ fp32.embed(PHOTO)[0]) > 0.9999


def test_javascript_gives_the_embeddings_of_the_embedder(fp32: Embedder, ppm: Path, tmp_path: Path) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("JAVASCRIPT EXAMPLE NOT RUN: no node and npm")
    shutil.copy(DEPLOYMENT / "embed.mjs", tmp_path)
    shutil.copy(ROOT / "edgeembed" / "export" / "web" / "static" / "pillow_resize.js", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefer-offline"]
    package = f"onnxruntime-web@{ONNX_RUNTIME_WEB}"
    installed = subprocess.run([*install, package], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    if installed.returncode != 0:
        pytest.skip(f"JAVASCRIPT EXAMPLE NOT RUN: npm cannot install {package}: {installed.stderr[-200:]}")
    found_D = np.array(run("node", "embed.mjs", fp32.bundle, ppm, cwd=tmp_path).split(), np.float32)
    assert float(found_D @ fp32.embed(PHOTO)[0]) > 0.9999
