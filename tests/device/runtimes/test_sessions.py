"""What holds in every runtime: the same files, the same numbers, the same refusals, and nobody is told of it."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgeembed.arrays import UInt8Array
from edgeembed.data.synthetic import render_view
from edgeembed.device.bundle import read_bundle
from edgeembed.device.embedder import ARTIFACTS, DEFAULT_ARTIFACT
from edgeembed.device.runtimes import ONNX_RUNTIMES, open_session
from edgeembed.errors import CheckFailed, UserError
from tests.device.conftest import DIM, SIZE_PX, tiny_network

BUNDLED = ARTIFACTS / DEFAULT_ARTIFACT
every_runtime = pytest.mark.parametrize("runtime", ONNX_RUNTIMES)


@pytest.fixture(scope="module")
def pictures() -> UInt8Array:
    """19 rendered photographs of the size that the bundled model takes."""
    size_px = read_bundle(BUNDLED).input.height
    return np.stack([np.asarray(render_view(seed=0, instance=i, view=0, size_px=size_px)) for i in range(19)])


@pytest.mark.parametrize(("precision", "difference", "cosine"), [("fp32", 1e-4, 0.99999), ("int8", 0.1, 0.99)])
def test_openvino_gives_what_onnx_runtime_gives_for_every_batch(
    pictures: UInt8Array, precision: str, difference: float, cosine: float
) -> None:
    file = BUNDLED / f"model.{precision}.onnx"
    expected = open_session(file, threads=1).run(pictures)
    session = open_session(file, runtime="openvino", threads=1)
    for batch in (1, 8, 1, 3, 19):
        found = session.run(pictures[:batch])
        assert found.dtype == np.float32
        assert found.shape == (batch, 64)
        assert np.abs(found - expected[:batch]).max() < difference
        assert (found * expected[:batch]).sum(axis=1).min() > cosine


def test_a_batch_in_openvino_is_what_single_images_are(pictures: UInt8Array) -> None:
    session = open_session(BUNDLED / "model.int8.onnx", runtime="openvino", threads=1)
    single = np.concatenate([session.run(pictures[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(session.run(pictures[:5]), single, atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32.onnx and fp16.onnx of a student, 32 px."""
    import torch

    from edgeembed.export.fp16 import to_fp16
    from edgeembed.export.onnx import to_onnx
    from edgeembed.student.zoo import build_student

    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    graph = to_onnx(build_student("test_resnet", weights="none", size_px=32, dim=64).eval(), {})
    onnx.save(graph, folder / "fp32.onnx")
    onnx.save(to_fp16(graph), folder / "fp16.onnx")
    return folder


@pytest.mark.training
@every_runtime
def test_half_precision_files_run(runtime: str, exported: Path, pictures: UInt8Array) -> None:
    pixels = np.ascontiguousarray(pictures[:3, ::4, ::4][:, :32, :32])
    whole = open_session(exported / "fp32.onnx", threads=1).run(pixels)
    half = open_session(exported / "fp16.onnx", runtime=runtime, threads=1).run(pixels)
    assert (whole * half).sum(axis=1).min() > 0.999


@every_runtime
def test_weights_beside_the_file_are_read(runtime: str, tmp_path: Path) -> None:
    tiny_network(tmp_path / "one.onnx")
    (tmp_path / "two").mkdir()
    split = tmp_path / "two" / "model.fp32.onnx"
    weights = f"{split.name}.data"
    onnx.save(onnx.load(tmp_path / "one.onnx"), split, save_as_external_data=True, location=weights, size_threshold=0)
    assert (tmp_path / "two" / weights).stat().st_size > 1000
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    expected = open_session(tmp_path / "one.onnx", threads=1).run(pixels)
    np.testing.assert_allclose(open_session(split, runtime=runtime, threads=1).run(pixels), expected, atol=1e-6)


@every_runtime
def test_a_broken_or_absent_file_is_one_line_that_names_it(runtime: str, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x09 no network")
    for name in ("broken.onnx", "absent.onnx"):
        with pytest.raises(UserError, match=f"{name}: O.* cannot open it"):
            open_session(tmp_path / name, runtime=runtime)


@every_runtime
def test_a_network_with_a_fixed_batch_is_refused(runtime: str, tmp_path: Path) -> None:
    tiny_network(tmp_path / "fixed.onnx", batch=1)
    with pytest.raises(UserError, match=r"expected one input image uint8 .* found image uint8 \(1, 32, 32, 3\)"):
        open_session(tmp_path / "fixed.onnx", runtime=runtime)


@every_runtime
def test_a_network_without_embeddings_is_refused(runtime: str, tmp_path: Path) -> None:
    tiny_network(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.output[0].name = model.graph.node[-1].output[0] = "vector"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(
        UserError, match=r"expected an output embedding float32 .* found vector float32 \(dynamic, 64\)"
    ):
        open_session(tmp_path / "other.onnx", runtime=runtime)


@every_runtime
def test_pixels_that_do_not_fit_are_a_failure_that_names_the_file(runtime: str, tmp_path: Path) -> None:
    tiny_network(tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx", runtime=runtime, threads=1)
    with pytest.raises(CheckFailed, match=r"model\.onnx: fails on pixels of shape \(1, 8, 8, 3\)"):
        session.run(np.zeros((1, 8, 8, 3), np.uint8))


@every_runtime
def test_a_session_serves_several_threads(runtime: str, tmp_path: Path) -> None:
    tiny_network(tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx", runtime=runtime, threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    with ThreadPoolExecutor(4) as pool:
        found = np.concatenate(list(pool.map(session.run, pixels)))
    np.testing.assert_allclose(found, session.run(pixels[:, 0]), atol=1e-6)
    assert found.shape == (40, DIM)


@every_runtime
def test_a_session_says_what_runs(runtime: str, tmp_path: Path) -> None:
    tiny_network(tmp_path / "model.onnx")
    for provider in (None, "cpu"):
        session = open_session(tmp_path / "model.onnx", runtime=runtime, threads=1, provider=provider)
        assert (session.runtime, session.threads) == (runtime, 1)
        assert session.provider == {"onnxruntime": "CPUExecutionProvider", "openvino": "CPU"}[runtime]


def test_every_provider_that_is_offered_has_a_short_name(tmp_path: Path) -> None:
    tiny_network(tmp_path / "model.onnx")
    with pytest.raises(UserError) as caught:
        open_session(tmp_path / "model.onnx", provider="nothing")
    for name in onnxruntime.get_available_providers():
        assert name.removesuffix("ExecutionProvider").lower() in str(caught.value)
    assert open_session(tmp_path / "model.onnx", provider="CPUExecutionProvider").provider == "CPUExecutionProvider"


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="cuda is offered here")
def test_a_provider_that_is_not_offered_is_refused_with_what_to_install(tmp_path: Path) -> None:
    tiny_network(tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"'cuda': ONNX Runtime .* offers .*cpu.*: install onnxruntime-gpu in place"):
        open_session(tmp_path / "model.onnx", provider="cuda")


def test_a_device_that_openvino_does_not_offer_is_refused(tmp_path: Path) -> None:
    tiny_network(tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"unknown provider 'cpuu': did you mean 'cpu'\?"):
        open_session(tmp_path / "model.onnx", runtime="openvino", provider="cpuu")


@pytest.mark.skipif("AzureExecutionProvider" not in onnxruntime.get_available_providers(), reason="azure not offered")
def test_a_provider_that_leaves_the_work_to_another_is_a_failure_that_names_it(tmp_path: Path) -> None:
    tiny_network(tmp_path / "model.onnx")  # Azure's provider is there in every build and takes no node of ours
    with pytest.raises(CheckFailed, match=r"was to run on AzureExecutionProvider, but runs on CPUExecutionProvider"):
        open_session(tmp_path / "model.onnx", provider="azure")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_neither_runtime_tells_anybody_nor_writes_into_the_home_folder(tmp_path: Path) -> None:
    tiny_network(tmp_path / "model.onnx")
    (tmp_path / "home").mkdir()
    program = f"""
import sys
from pathlib import Path
from edgeembed.device.runtimes import ONNX_RUNTIMES, open_session
for runtime in ONNX_RUNTIMES:
    open_session(Path({str(tmp_path / "model.onnx")!r}), runtime=runtime)
told = [name for name in sys.modules if name.startswith("openvino_telemetry")]
assert not told, told
import openvino_telemetry  # whoever else wants it still has it
"""
    inherited = {name: os.environ[name] for name in os.environ.keys() - {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"}}
    environment = {**inherited, "HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list((tmp_path / "home").rglob("*")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks are looked at as Linux has them")
def test_signals_find_a_stack_after_sessions_of_openvino_went_in_any_order() -> None:
    program = f"""
import os, signal, subprocess, sys
from pathlib import Path
from edgeembed.device.runtimes import open_session
seen = []
signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
file = Path({str(BUNDLED / "model.int8.onnx")!r})
for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
    sessions = {{i: open_session(file, runtime="openvino", threads=1) for i in range(3)}}
    for i in order:
        del sessions[i]
        subprocess.run([sys.executable, "-c", ""], check=True)
assert len(seen) == 9
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
