"""TensorRT 10 and 11 have every call of our builder and runner, by their Python bindings; no GPU is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export.tensorrt.wheels import download_wheel

BINDINGS = {"10": ("tensorrt-cu12-bindings", "10.13.3.9"), "11": ("tensorrt-cu13-bindings", "11.4.0.106")}
CALL_BINDINGS = Path(__file__).parent / "call_bindings.py"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
FACTORIES = (
    "createInferBuilder_INTERNAL", "createInferRuntime_INTERNAL", "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion",
    "getPluginRegistry", "getBuilderPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
"""The C functions that the bindings look up when they are loaded."""

RUNNER, BUILDER = "edgeembed.device.runtimes.tensorrt", "edgeembed.export.tensorrt.build"
MISSING = [
    (RUNNER, "self._context.execute_async_v3(self._device.stream)", "self._context.execute_async_v2([], 7)"),
    (RUNNER, "self._engine.num_io_tensors", "self._engine.num_bindings"),
    (RUNNER, 'self._context.set_input_shape("image", image_NHWC.shape)', "self._context.set_binding_shape(0, (1,))"),
    (BUILDER, "builder.build_serialized_network(", "builder.build_engine("),
    (BUILDER, "config.set_timing_cache(cache, ignore_mismatch=False)", "config.set_timing_cache(cache)"),
]
"""Calls of earlier versions, or with an argument less, that 10 and 11 do not have."""
MISSING_IN_11 = [
    (BUILDER, "flags.STRONGLY_TYPED if is_strongly_typed() else flags.EXPLICIT_BATCH", "flags.EXPLICIT_BATCH"),
    (BUILDER, "tensorrt.BuilderFlag.VERSION_COMPATIBLE", "tensorrt.BuilderFlag.FP16"),
]


@pytest.fixture(scope="module")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """By major version, the environment in which `import tensorrt` loads its bindings."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("stand-ins for NVIDIA's libraries need Linux and a C compiler")
    folder = tmp_path_factory.mktemp("bindings")
    source = folder / "stand_in.c"
    source.write_text("\n".join(f"void* {name}(void) {{ return 0; }}" for name in FACTORIES))
    found = {}
    for major, (package, version) in BINDINGS.items():
        download_wheel(package, version, folder / major)
        (folder / major / "tensorrt_bindings").rename(folder / major / "tensorrt")
        for library in LIBRARIES:
            name = f"lib{library}.so.{major}"
            command = [
                compiler,
                "-shared",
                "-fPIC",
                "-o",
                str(folder / major / name),
                f"-Wl,-soname,{name}",
                str(source),
            ]
            subprocess.run(command, check=True)
        paths = os.pathsep.join([str(folder / major), str(Path(__file__).parents[3])])
        found[major] = {**os.environ, "PYTHONPATH": paths, "LD_LIBRARY_PATH": str(folder / major)}
    return found


def check_calls(environment: dict[str, str], *change: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(CALL_BINDINGS), *change]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("major", BINDINGS)
def test_builder_and_runner_call_only_what_the_version_has(bindings: dict[str, dict[str, str]], major: str) -> None:
    done = check_calls(bindings[major])
    assert done.stdout == f"checked {BINDINGS[major][1]}\n", done.stderr


@pytest.mark.parametrize("major", BINDINGS)
@pytest.mark.parametrize("change", MISSING, ids=[new for _, _, new in MISSING])
def test_a_call_that_the_version_lacks_is_found(
    bindings: dict[str, dict[str, str]], major: str, change: tuple[str, str, str]
) -> None:
    done = check_calls(bindings[major], "|".join(change))
    assert done.returncode != 0
    assert "AttributeError" in done.stderr or "TypeError" in done.stderr, done.stderr


@pytest.mark.parametrize("change", MISSING_IN_11, ids=[new for _, _, new in MISSING_IN_11])
def test_what_11_dropped_is_found_in_11_and_there_in_10(
    bindings: dict[str, dict[str, str]], change: tuple[str, str, str]
) -> None:
    assert check_calls(bindings["10"], "|".join(change)).returncode == 0
    done = check_calls(bindings["11"], "|".join(change))
    assert done.returncode != 0
    assert "AttributeError" in done.stderr, done.stderr
