"""What a bench leaves for later starts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeembed.bench.candidates import find_candidates
from edgeembed.bench.remembering import remember_fastest
from edgeembed.bench.retrieval import Embedded
from edgeembed.bench.run import bench
from edgeembed.bundle import read_bundle, sha256_of
from edgeembed.data.manifest import Manifest
from edgeembed.embedder import Embedder
from edgeembed.run import write_json
from edgeembed.runtimes import fastest
from tests.bench.conftest import tiny_onnx, write_bundle
from tests.runtimes.conftest import say_verified

Remembered = Callable[[dict[str, tuple[float, float]]], tuple[str, str] | None]
"""From the p50 (ms) and the cosine to the fp32 file in ONNX Runtime, by runtime, to the pair that is used then."""


@pytest.fixture
def remembered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Remembered:
    """Remembers from rows and embeddings with these figures."""
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
            }
            for runtime, (p50_ms, _) in measured.items()
            for batch in (8, 1)
            for threads in (1, 2)
        ]
        embedded = {
            candidate: embedded_at(measured[candidate.runtime][1])
            for candidate in find_candidates([folder])
            if candidate.runtime in measured
        }
        remember_fastest(embedded, rows, threads=2)
        pair = fastest.recall(folder, read_bundle(folder), threads=2)
        return None if pair is None else (pair.file.path, pair.runtime)

    return after


def embedded_at(cosine: float) -> Embedded:
    """Unit vectors at that cosine to those of cosine 1; the last image could not be read."""
    embedding_ND = np.zeros((20, 64), np.float32)
    embedding_ND[:19, 0], embedding_ND[:19, 1] = cosine, np.sqrt(1 - cosine**2)
    return Embedded(embedding_ND=embedding_ND, readable_N=np.arange(20) < 19)


def test_the_fastest_verified_pair_at_batch_1_on_all_cores_is_used_from_then_on(
    remembered: Remembered, caplog: pytest.LogCaptureFixture
) -> None:
    assert remembered({"onnxruntime": (2.0, 1.0), "openvino": (1.0, 0.995)}) == ("model.fp32.onnx", "openvino")
    assert "tiny: from now on model.fp32.onnx in openvino is used on this machine (1.00 ms an image)" in caplog.text
    assert remembered({"onnxruntime": (2.0, 1.0), "openvino": (3.0, 1.0)}) == ("model.fp32.onnx", "onnxruntime")
    assert remembered({"onnxruntime": (2.0, 1.0)}) == ("model.fp32.onnx", "onnxruntime")


def test_a_runtime_whose_embeddings_differ_is_not_used_and_the_log_says_why(
    remembered: Remembered, caplog: pytest.LogCaptureFixture
) -> None:
    assert remembered({"onnxruntime": (2.0, 1.0), "openvino": (1.0, 0.98)}) == ("model.fp32.onnx", "onnxruntime")
    assert "tiny fp32 (openvino) is not used by default on this machine: cosine p1 to the fp32" in caplog.text
    assert "is 0.9800, below 0.99" in caplog.text


def test_without_the_fp32_file_in_onnx_runtime_nothing_is_remembered(
    remembered: Remembered, caplog: pytest.LogCaptureFixture
) -> None:
    assert remembered({"openvino": (1.0, 1.0)}) is None
    assert "no embeddings of an fp32 file in ONNX Runtime to compare with" in caplog.text


@pytest.mark.usefixtures("hurried", "without_int8_dot_products")
@pytest.mark.parametrize(("seed", "reduce_range", "told"), [(1, True, "cosine p1"), (0, False, "8-bit weights")])
def test_a_bench_remembers_no_int8_file_that_is_wrong_here(
    manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int, reduce_range: bool, told: str
) -> None:
    folder = write_bundle(tmp_path / "tiny", extra={"model.int8.onnx": "onnxruntime"})
    onnx.save(tiny_onnx(seed), folder / "model.int8.onnx")
    value = json.loads((folder / "bundle.json").read_text())
    value["files"][1].update(
        sha256=sha256_of(folder / "model.int8.onnx"),
        bytes=(folder / "model.int8.onnx").stat().st_size,
        quantisation={"reduce_range": reduce_range},
    )
    write_json(folder / "bundle.json", value)
    bench([folder], manifest, teacher=None, out=tmp_path / "r", quick=True)
    assert "tiny int8 (onnxruntime) is not used by default on this machine: " in caplog.text
    assert told in caplog.text
    assert Embedder(folder).precision == "fp32"


def test_nothing_measured_is_nothing_remembered(remembered: Remembered) -> None:
    assert remembered({}) is None


@pytest.mark.usefixtures("hurried")
def test_a_bench_remembers_verified_pairs_only(manifest: Manifest, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "tiny")
    report = bench([folder], manifest, teacher=None, out=tmp_path / "r", quick=True)
    assert {row["runtime"] for row in report["rows"]} == {"onnxruntime", "openvino"}
    (value,) = json.loads(fastest.cache_file().read_text()).values()
    assert [(one["path"], one["runtime"]) for one in value["measured"]] == [("model.fp32.onnx", "onnxruntime")]
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
