"""What a bench leaves for later starts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeembed.bench.candidates import find_candidates
from edgeembed.bench.remembering import remember_fastest
from edgeembed.bench.run import bench
from edgeembed.bundle import read_bundle
from edgeembed.data.manifest import Manifest
from edgeembed.embedder import Embedder
from edgeembed.runtimes import fastest
from tests.bench.conftest import write_bundle
from tests.runtimes.conftest import say_verified

Remembered = Callable[[dict[str, tuple[float, float]]], tuple[str, str] | None]


@pytest.fixture
def remembered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Remembered:
    """Remembers from rows with these p50 (ms) and mAP by runtime; gives the file and runtime that are used then."""
    caplog.set_level(logging.INFO)
    folder = write_bundle(tmp_path / "tiny")
    say_verified(folder, {"model.fp32.onnx": True})

    def after(measured: dict[str, tuple[float, float]]) -> tuple[str, str] | None:
        rows: list[dict[str, Any]] = [
            {
                "name": "tiny",
                "sha256": read_bundle(folder).files[0].sha256,
                "runtime": runtime,
                "provider": runtime,
                "batch": batch,
                "threads": threads,
                "latency_ms": {"p50": p50_ms if (batch, threads) == (1, 2) else 0.001},
                "retrieval": {"symmetric": {"map": map_}},
            }
            for runtime, (p50_ms, map_) in measured.items()
            for batch in (8, 1)
            for threads in (1, 2)
        ]
        remember_fastest(find_candidates([folder]), rows, threads=2)
        pair = fastest.recall(folder, read_bundle(folder), threads=2)
        return None if pair is None else (pair.file.path, pair.runtime)

    return after


def test_the_fastest_verified_pair_at_batch_1_on_all_cores_is_used_from_then_on(
    remembered: Remembered, caplog: pytest.LogCaptureFixture
) -> None:
    assert remembered({"onnxruntime": (2.0, 0.5), "openvino": (1.0, 0.495)}) == ("model.fp32.onnx", "openvino")
    assert "tiny: from now on model.fp32.onnx in openvino is used on this machine (1.00 ms an image)" in caplog.text
    assert remembered({"onnxruntime": (2.0, 0.5), "openvino": (3.0, 0.5)}) == ("model.fp32.onnx", "onnxruntime")
    assert remembered({"onnxruntime": (2.0, 0.5)}) == ("model.fp32.onnx", "onnxruntime")


def test_a_runtime_that_loses_more_than_a_point_of_map_is_not_used_and_the_log_says_why(
    remembered: Remembered, caplog: pytest.LogCaptureFixture
) -> None:
    assert remembered({"onnxruntime": (2.0, 0.5), "openvino": (1.0, 0.48)}) == ("model.fp32.onnx", "onnxruntime")
    told = "tiny fp32 (openvino) is not used: its mAP is 0.4800, that of the same file in onnxruntime 0.5000"
    assert told in caplog.text


def test_nothing_measured_is_nothing_remembered(remembered: Remembered) -> None:
    assert remembered({}) is None


@pytest.mark.usefixtures("hurried")
def test_a_bench_remembers_verified_pairs_only(manifest: Manifest, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "tiny")
    report = bench([folder], manifest, teacher=None, out=tmp_path / "r", quick=True)
    assert {row["runtime"] for row in report["rows"]} == {"onnxruntime", "openvino"}
    (value,) = json.loads(fastest.cache_file().read_text()).values()
    assert [(one["path"], one["runtime"]) for one in value["timed"]] == [("model.fp32.onnx", "onnxruntime")]
    assert Embedder(folder).runtime == "onnxruntime"


@pytest.mark.usefixtures("hurried")
def test_a_runtime_that_cannot_open_a_file_is_skipped_with_its_reason(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("this operator is not known")

    monkeypatch.setattr("edgeembed.runtimes.openvino.OpenVinoSession._compiled_for", refuse)
    report = bench([write_bundle(tmp_path / "tiny")], manifest, teacher=None, out=tmp_path / "r", quick=True)
    assert {row["runtime"] for row in report["rows"]} == {"onnxruntime"}
    assert [item["name"] for item in report["skipped"]] == ["tiny fp32 (openvino)"]
    assert "this operator is not known" in report["skipped"][0]["reason"]
