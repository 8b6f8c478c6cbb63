"""NVIDIA's parser and compiler build the exported files, with TensorRT for RTX, which compiles on a CPU.

1.4 is as old as TensorRT 10, 1.7 as 11. A GPU would complete what they build; the tests marked tensorrt run engines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from edgeembed.device.embedder import default_bundle
from edgeembed.export.fp16 import to_fp16
from edgeembed.export.int8.quantise import Quantiser
from edgeembed.export.onnx import to_onnx
from edgeembed.export.recipe import Int8Section
from edgeembed.export.tensorrt.rewrite import rewrite_for_tensorrt, unsupported_features
from edgeembed.student.aliases import ALIASES
from edgeembed.student.zoo import build_student
from tests.export.tensorrt.wheels import download_wheel
from tests.student.test_zoo import OTHER_FAMILIES

Build = Callable[..., dict[str, Any]]

BUILD_WITH_RTX = Path(__file__).parent / "build_with_rtx.py"
TENSORRT_VERSIONS = {"1.4.0.76": "10.14.1", "1.7.1.116": "11.4.0"}
"""Versions of TensorRT for RTX, and the TensorRT whose calls and parser they have."""
WITHOUT_INT8_CONVOLUTIONS = "1.4.0.76"
NOT_COMPILED = ("mobilevit_xxs",)
"""Students that TensorRT for RTX reads and then cannot compile, by an error of its own."""


@pytest.fixture(scope="session", params=TENSORRT_VERSIONS)
def rtx(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Build]:
    """A version of TensorRT for RTX, and a function that runs our builder with it."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("TensorRT for RTX 1.4 is made for x86-64")
    version = request.param
    folder = tmp_path_factory.mktemp(f"rtx_{version}")
    for package in ("tensorrt-rtx-cu12-libs", "tensorrt-rtx-cu12-bindings"):
        download_wheel(package, version, folder)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[3])])}

    def build(*arguments: object) -> dict[str, Any]:
        command = [
            sys.executable,
            "-W",
            "ignore",
            str(BUILD_WITH_RTX),
            TENSORRT_VERSIONS[version],
            *map(str, arguments),
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return printed

    return version, build


def write_files(name: str, folder: Path) -> list[Path]:
    """A student, not trained, in each precision."""
    size_px = 224 if name.startswith(("efficientformerv2", "tiny_vit")) else 64
    torch.manual_seed(0)
    fp32 = to_onnx(build_student(name, weights="none", size_px=size_px, dim=64).eval(), {})
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, (8, size_px, size_px, 3), dtype=np.uint8)
    work = folder / f"{name}_int8"
    work.mkdir()
    int8 = Quantiser(fp32, pixels_NHWC, work, Int8Section(calibration="minmax")).quantise("minmax")
    paths = []
    for precision, model in (("fp32", fp32), ("fp16", to_fp16(fp32)), ("int8", int8)):
        paths.append(folder / f"{name}.{precision}.onnx")
        onnx.save(model, paths[-1])
    return paths


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Convolutions, a transformer, and a network between the two."""
    folder = tmp_path_factory.mktemp("files")
    return [path for name in ("resnet_xs", "test_vit", "fastvit_sa12") for path in write_files(name, folder)]


def test_each_precision_of_each_kind_of_student_is_built(rtx: tuple[str, Build], files: list[Path]) -> None:
    version, build = rtx
    engines = build(*files)["engines"]
    assert len(engines) == len(files) == 9
    for path in files:
        name, precision, _ = path.name.split(".")
        engine = engines[path.name]
        if precision == "int8" and version == WITHOUT_INT8_CONVOLUTIONS:
            continue
        assert "refused" not in engine, engine
        fp32_bytes = engines[f"{name}.fp32.onnx"]["weights_bytes"]
        if precision == "fp16":
            assert engine["weights_bytes"] < 0.6 * fp32_bytes
            assert engine["products"]["FLOAT"] == engine["float32_products"] == 1
            assert engine["products"]["HALF"] == engines[f"{name}.fp32.onnx"]["products"]["FLOAT"] - 1
        if precision == "int8":
            assert engine["weights_bytes"] < 0.6 * fp32_bytes


def test_the_bundled_files_are_built_with_a_cache_of_timings(rtx: tuple[str, Build], tmp_path: Path) -> None:
    version, build = rtx
    paths = []
    for precision in ("fp32", "int8"):
        paths.append(tmp_path / f"bundled.{precision}.onnx")
        paths[-1].symlink_to(default_bundle() / f"model.{precision}.onnx")
    cache = tmp_path / "timings"
    first = build("--cache", cache, *paths)["engines"]
    assert cache.stat().st_size > 0
    again = build("--cache", cache, *paths)["engines"]
    # The size of a plan differs by some bytes from build to build.
    assert [{**engine, "plan_bytes": 0} for engine in again.values()] == [
        {**engine, "plan_bytes": 0} for engine in first.values()
    ]
    assert first["bundled.fp32.onnx"]["weights_bytes"] > 10_000_000
    if version != WITHOUT_INT8_CONVOLUTIONS:
        assert first["bundled.int8.onnx"]["weights_bytes"] < 0.35 * first["bundled.fp32.onnx"]["weights_bytes"]


def test_the_parser_knows_every_operator_that_we_call_supported(rtx: tuple[str, Build]) -> None:
    _, build = rtx
    assert build()["unknown"] == []


def test_an_error_of_the_parser_is_reported_in_its_words(rtx: tuple[str, Build], tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 8, 8, 3])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 4])
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "y"], ["embedding"], name="product"),
    ]
    graph = helper.make_graph(nodes, "broken", [image], [embedding])
    path = tmp_path / "broken.fp32.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    version, build = rtx
    refused = build(path)["engines"]["broken.fp32.onnx"]["refused"]
    assert refused.startswith(f"TensorRT {TENSORRT_VERSIONS[version]} cannot parse the fp32 file: ")
    assert refused.endswith("(MatMul product)")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*sorted(ALIASES), *OTHER_FAMILIES])
def test_every_student_is_built(rtx: tuple[str, Build], name: str, tmp_path: Path) -> None:
    version, build = rtx
    paths = write_files(name, tmp_path)
    assert paths[2].stat().st_size < 0.35 * paths[0].stat().st_size
    for path in paths:
        for tensorrt in ((8, 5), (8, 6), (10, 3), (11, 4)):
            assert unsupported_features(rewrite_for_tensorrt(onnx.load(path), tensorrt), tensorrt) == []
    for path, engine in zip(paths, build(*paths)["engines"].values(), strict=True):
        expected = name in NOT_COMPILED or (".int8." in path.name and version == WITHOUT_INT8_CONVOLUTIONS)
        assert ("refused" in engine) <= expected, engine
        assert "cannot parse" not in engine.get("refused", "")
