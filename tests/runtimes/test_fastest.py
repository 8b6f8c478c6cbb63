"""Which pair of file and runtime is fastest: who takes part, what is remembered, and when that is not believed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeembed import embedder as embedder_module
from edgeembed import run
from edgeembed.bundle import read_bundle
from edgeembed.embedder import Embedder, choose_pair
from edgeembed.errors import CheckFailed
from edgeembed.runtimes import fastest
from edgeembed.runtimes.fastest import Timed, recall, remember, time_pairs, verified_pairs
from tests.runtimes.conftest import say_verified

MakeBundle = Callable[..., Path]

OWN_FP32 = Timed(path="model.fp32.onnx", runtime="onnxruntime", provider="CPUExecutionProvider", p50_ms=2.0)
OWN_INT8 = Timed(path="model.int8.onnx", runtime="onnxruntime", provider="CPUExecutionProvider", p50_ms=1.5)
OTHER_FP32 = Timed(path="model.fp32.onnx", runtime="openvino", provider="CPU", p50_ms=1.0)


def recalled(folder: Path, **options: Any) -> tuple[str, str] | None:
    pair = recall(folder, read_bundle(folder), **options)
    return None if pair is None else (pair.file.path, pair.runtime)


def test_a_file_takes_part_in_its_own_runtime_and_where_it_passed(make_bundle: MakeBundle) -> None:
    pairs = verified_pairs(read_bundle(make_bundle()))
    assert [(pair.file.path, pair.runtime) for pair in pairs] == [
        ("model.fp32.onnx", "onnxruntime"),
        ("model.fp32.onnx", "openvino"),
        ("model.int8.onnx", "onnxruntime"),
    ]


def test_a_runtime_that_is_not_installed_takes_no_part(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastest, "is_installed", lambda runtime: runtime == "onnxruntime")
    assert {pair.runtime for pair in verified_pairs(read_bundle(make_bundle()))} == {"onnxruntime"}


@pytest.mark.usefixtures("hurried")
def test_every_verified_pair_is_timed_and_the_fastest_remembered(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    timed = time_pairs(folder, read_bundle(folder))
    assert [(one.path, one.runtime, one.provider) for one in timed] == [
        ("model.fp32.onnx", "onnxruntime", "CPUExecutionProvider"),
        ("model.fp32.onnx", "openvino", "CPU"),
        ("model.int8.onnx", "onnxruntime", "CPUExecutionProvider"),
    ]
    assert all(one.p50_ms > 0 for one in timed)
    best = remember(folder, timed)
    assert best.p50_ms == min(one.p50_ms for one in timed)
    assert recalled(folder) == (best.path, best.runtime)
    (value,) = json.loads(fastest.cache_file().read_text()).values()
    assert [one["p50_ms"] for one in value["timed"]] == [one.p50_ms for one in timed]


@pytest.mark.usefixtures("hurried")
def test_a_file_that_cannot_be_opened_is_left_out_with_a_warning(
    make_bundle: MakeBundle, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_bundle()
    (folder / "model.fp32.onnx").write_bytes(b"no network")
    assert [one.path for one in time_pairs(folder, read_bundle(folder))] == ["model.int8.onnx"]
    assert "not measured: model.fp32.onnx in openvino: " in caplog.text
    (folder / "model.int8.onnx").write_bytes(b"no network")
    with pytest.raises(CheckFailed, match="no file can be opened"):
        time_pairs(folder, read_bundle(folder))


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[1]", b"{}", b'{"a": 1}', None])
def test_a_damaged_cache_is_no_cache_and_is_written_anew(make_bundle: MakeBundle, content: bytes | None) -> None:
    folder = make_bundle()
    if content is None:
        remember(folder, [OWN_FP32])
        damaged = {key: {"fastest": ["model.fp32.onnx"]} for key in json.loads(fastest.cache_file().read_text())}
        content = json.dumps(damaged).encode()
    fastest.cache_file().write_bytes(content)
    assert recalled(folder) is None
    Embedder(folder)
    remember(folder, [OWN_FP32, OTHER_FP32])
    assert recalled(folder) == ("model.fp32.onnx", "openvino")


@pytest.mark.parametrize(
    "other",
    [
        {"cpu": "another"},
        {"cores": 1000},
        {"cpu_flags": ["amx_int8"]},
        {"architecture": "riscv64"},
    ],
)
def test_another_machine_is_not_believed(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    folder = make_bundle()
    remember(folder, [OTHER_FP32], threads=1)
    assert recalled(folder, threads=1) is not None
    machine = fastest.this_machine()
    monkeypatch.setattr(fastest, "this_machine", lambda: {**machine, **other})
    assert recalled(folder, threads=1) is None


def test_other_versions_threads_and_bundles_are_measured_again(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bundle()
    remember(folder, [OTHER_FP32], threads=1)
    assert recalled(folder, threads=64) is None
    assert recalled(make_bundle("second"), threads=1) is None
    say_verified(folder, {"model.int8.onnx": True})
    assert recalled(folder, threads=1) is None
    remember(folder, [OTHER_FP32], threads=1)
    monkeypatch.setattr(fastest, "runtime_versions", lambda: {"onnxruntime": "0"})
    assert recalled(folder, threads=1) is None


def test_only_verified_pairs_are_believed(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    for path, runtime in (("../other.onnx", "onnxruntime"), ("model.int8.onnx", "openvino"), ("x", "torch")):
        remember(folder, [Timed(path=path, runtime=runtime, provider="", p50_ms=1.0)])
        assert recalled(folder) is None


def test_the_cache_is_the_users_and_does_not_grow_without_end(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bundle()
    monkeypatch.setattr(fastest, "cache_folder", run.cache_folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(fastest, "MOST_REMEMBERED", 3)
    for threads in range(1, 6):
        remember(folder, [OWN_FP32], threads=threads)
    assert [path.name for path in (tmp_path / "xdg" / "edgeembed").iterdir()] == ["fastest.json"]
    assert [threads for threads in range(1, 6) if recalled(folder, threads=threads)] == [3, 4, 5]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fastest.cache_file() == tmp_path / ".cache" / "edgeembed" / "fastest.json"


def test_a_cache_that_cannot_be_written_is_a_warning(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(fastest, "cache_folder", lambda: tmp_path / "file")
    assert remember(make_bundle(), [OWN_FP32]) == OWN_FP32
    assert "cannot be remembered" in caplog.text
    assert Embedder(tmp_path / "tiny").runtime == "onnxruntime"


def test_the_embedder_opens_what_was_asked_for_else_what_is_remembered_else_what_suits_the_cpu(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def opened(**options: Any) -> tuple[str, str]:
        one = Embedder(folder, **options)
        return one.precision, one.runtime

    folder = make_bundle()
    monkeypatch.setattr(embedder_module, "has_int8_dot_product", lambda: True)
    assert opened() == ("int8", "onnxruntime")
    remember(folder, [OWN_FP32, OWN_INT8, OTHER_FP32])
    assert opened() == ("fp32", "openvino")
    assert Embedder(folder).provider == "CPU"
    assert opened(precision="int8") == ("int8", "onnxruntime")
    assert opened(runtime="onnxruntime") == ("int8", "onnxruntime")
    assert opened(provider="cpu") == ("int8", "onnxruntime")
    assert choose_pair(read_bundle(folder), None, None, "cuda").file.precision == "fp32"
    assert not caplog.records
    assert opened(runtime="openvino") == ("fp32", "openvino")  # the one that was verified there
    assert not caplog.records
    assert opened(runtime="openvino", precision="int8") == ("int8", "openvino")
    assert "model.int8.onnx was not verified in openvino" in caplog.text


def test_a_remembered_runtime_that_cannot_be_imported_any_more_gives_way(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_bundle()
    remember(folder, [OTHER_FP32])
    monkeypatch.delitem(sys.modules, "edgeembed.runtimes.openvino", raising=False)
    monkeypatch.setattr(fastest, "is_installed", lambda _runtime: True)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert Embedder(folder).runtime == "onnxruntime"
    assert "openvino, the fastest here, cannot be imported any more" in caplog.text
    caplog.clear()
    monkeypatch.setattr(fastest, "is_installed", lambda runtime: runtime != "openvino")
    assert Embedder(folder).runtime == "onnxruntime"
    assert not caplog.records
