"""What a bench recommends, and what it leaves for later starts: one rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeembed.bench.candidates import find_candidates
from edgeembed.bench.recommendation import recommend
from edgeembed.bench.report_schema import Recommendation, RefusedFile, Row
from edgeembed.bench.report_text import recommendation_lines
from edgeembed.bench.run import bench
from edgeembed.bench.summary import best_student
from edgeembed.data.manifest import Manifest
from edgeembed.device.bundle import read_bundle
from edgeembed.device.checksummed_json import write_checksummed
from edgeembed.device.embedder import Embedder
from edgeembed.device.runtimes import fastest_cache
from edgeembed.evaluation import EmbeddedRows
from edgeembed.files import sha256_of, write_json
from tests.bench.conftest import tiny_onnx, write_bundle
from tests.bench.reports import LATENCY, report_of, row
from tests.device.runtimes.conftest import say_verified

Recommend = Callable[..., Recommendation]
"""From the p50 (ms) and the cosine to the fp32 file in ONNX Runtime, by runtime, to what is recommended."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    written = write_bundle(tmp_path / "tiny")
    say_verified(written, {"model.fp32.onnx": True})
    return written


@pytest.fixture
def recommended(folder: Path) -> Recommend:
    """Recommends from rows and embeddings with these figures."""

    def after(measured: dict[str, tuple[float, float]], *, keep: bool = False, images: int = 19) -> Recommendation:
        sha256 = read_bundle(folder).files[0].sha256
        rows = [
            Row.model_validate(
                row(
                    "tiny",
                    "student",
                    0.5,
                    [],
                    sha256=sha256,
                    runtime=runtime,
                    provider=runtime,
                    batch=batch,
                    threads=threads,
                    latency_ms={**LATENCY, "p50": p50_ms if (batch, threads) == (1, 2) else 0.001},
                )
            )
            for runtime, (p50_ms, _) in measured.items()
            for batch in (8, 1)
            for threads in (1, 2)
        ]
        embedded = {
            candidate: embedded_at(measured[candidate.runtime][1], images)
            for candidate in find_candidates([folder])
            if candidate.runtime in measured
        }
        (found,) = recommend(embedded, rows, threads=2, keep=keep)
        return found

    return after


def chosen(found: Recommendation) -> tuple[str | None, str | None]:
    return found.path, found.runtime


def lines_of(found: Recommendation) -> list[str]:
    return recommendation_lines(report_of(["tiny"]).model_copy(update={"recommended": (found,)}))


def used(folder: Path) -> tuple[str, str] | None:
    pair = fastest_cache.load_fastest(folder, read_bundle(folder), threads=2)
    return None if pair is None else (pair.file.path, pair.runtime)


def embedded_at(cosine: float, images: int) -> EmbeddedRows:
    """Unit vectors, spread over the space, at that cosine to those of cosine 1."""
    vector_ND = np.random.default_rng(0).standard_normal((images + 1, 62))[:images].astype(np.float32)
    vector_ND /= np.linalg.norm(vector_ND, axis=1, keepdims=True)
    embedding_ND = np.zeros((images, 64), np.float32)
    embedding_ND[:, :62], embedding_ND[:, 62] = cosine * vector_ND, np.sqrt(1 - cosine**2)
    return EmbeddedRows(embedding_ND=embedding_ND, row_N=np.arange(images))


FP32, OTHER = ("model.fp32.onnx", "onnxruntime"), ("model.fp32.onnx", "openvino")


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({"onnxruntime": (2.0, 1.0), "openvino": (1.0, 0.9999)}, OTHER),
        ({"onnxruntime": (2.0, 1.0), "openvino": (3.0, 1.0)}, FP32),
        ({"onnxruntime": (2.0, 1.0), "openvino": (1.0, 0.9)}, FP32),
        ({"onnxruntime": (2.0, 1.0)}, FP32),
    ],
)
def test_what_is_recommended_is_what_is_remembered(
    recommended: Recommend, folder: Path, measured: dict[str, tuple[float, float]], expected: tuple[str, str]
) -> None:
    assert chosen(recommended(measured)) == expected
    assert used(folder) is None, "not before it is asked for"
    kept = recommended(measured, keep=True)
    assert chosen(kept) == used(folder) == expected
    assert kept.in_use == " in ".join(expected)


def test_a_faster_pair_that_is_refused_is_named_with_the_reason_and_what_is_used_instead(
    recommended: Recommend,
) -> None:
    found = recommended({"onnxruntime": (2.0, 1.0), "openvino": (1.0, 0.9)})
    (refused,) = found.refused
    assert (refused.path, refused.runtime, refused.p50_ms) == (*OTHER, 1.0)
    lines = lines_of(found)
    assert lines[0] == "tiny: recommended is model.fp32.onnx in onnxruntime (2.00 ms an image)"
    assert lines[1].startswith("tiny: model.fp32.onnx in openvino (1.00 ms an image) is not recommended: cosine p1")
    assert lines[1].endswith("; model.fp32.onnx in onnxruntime is used instead")
    assert lines[2] == "tiny: model.fp32.onnx in onnxruntime is the default on this machine"


def test_a_recommended_file_whose_loss_was_not_shown_is_recommended_with_that(
    recommended: Recommend, folder: Path
) -> None:
    value = json.loads((folder / "bundle.json").read_text())
    value.pop("seal")
    loss = {"value": 0.0, "ci95": [-0.01, 0.01], "limit": 0.005, "shown": False, "matched_queries": 16, "classes": 8}
    loss |= {"queries_needed": 300, "classes_needed": 40}
    for file in value["files"]:
        file["retrieval"] = {"map_loss": loss}
    write_checksummed(folder / "bundle.json", value)
    lines = lines_of(recommended({"onnxruntime": (2.0, 1.0)}))
    assert lines[1].startswith(
        "tiny: when model.fp32.onnx in onnxruntime was exported, its loss of mAP was not shown: 16 matched queries of "
        "8 classes, about 300 of at least 40 classes needed"
    )


def test_a_default_that_would_change_says_how_to_change_it(recommended: Recommend, folder: Path) -> None:
    found = recommended({"onnxruntime": (2.0, 1.0), "openvino": (1.0, 1.0)})
    (*_, last) = lines_of(found)
    assert "the default on this machine stays model.fp32.onnx in onnxruntime: add --remember" in last
    assert f"`edgeembed doctor {folder}`" in last


@pytest.mark.parametrize(
    ("measured", "images", "message"),
    [
        ({"openvino": (1.0, 1.0)}, 19, "no embeddings of an fp32 file in ONNX Runtime to compare with"),
        ({"onnxruntime": (2.0, 1.0), "openvino": (1.0, 1.0)}, 5, "compared on 5 images only"),
    ],
)
def test_what_cannot_be_compared_is_not_recommended_nor_remembered(
    recommended: Recommend, folder: Path, measured: dict[str, tuple[float, float]], images: int, message: str
) -> None:
    found = recommended(measured, keep=True, images=images)
    assert used(folder) is None
    assert not found.is_measured
    assert all(message in refused.reason for refused in found.refused)
    assert chosen(found) == (FP32 if "onnxruntime" in measured else (None, None))
    assert found.in_use == " in ".join(FP32)


def test_a_pair_that_was_not_verified_is_never_recommended(recommended: Recommend, folder: Path) -> None:
    say_verified(folder, {"model.fp32.onnx": False})
    found = recommended({"onnxruntime": (2.0, 1.0), "openvino": (1.0, 1.0)}, keep=True)
    assert chosen(found) == used(folder) == FP32
    assert found.refused[0].reason == "it was not verified in openvino when it was exported"


def test_the_default_without_a_right_file_is_not_called_recommended(recommended: Recommend) -> None:
    found = recommended({"onnxruntime": (2.0, 1.0), "openvino": (1.0, 0.9)})
    few = RefusedFile(path=FP32[0], precision="fp32", runtime=FP32[1], p50_ms=2.0, reason="compared on 12 images only")
    lines = lines_of(found.model_copy(update={"is_measured": False, "refused": (few, *found.refused)}))
    assert lines[0] == (
        "tiny: model.fp32.onnx in onnxruntime is used, as no file could be recommended: compared on 12 images only"
    )
    assert "model.fp32.onnx in onnxruntime" not in lines[1].split(" is not recommended")[0]


@pytest.mark.usefixtures("hurried", "without_int8_dot_products")
@pytest.mark.parametrize(("seed", "reduce_range", "message"), [(1, True, "cosine p1"), (0, False, "8-bit weights")])
def test_a_bench_recommends_no_int8_file_that_is_wrong_here(
    manifest: Manifest, tmp_path: Path, seed: int, reduce_range: bool, message: str
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
    report = bench([folder], manifest, teacher=None, out=tmp_path / "r", quick=True, remember=True)
    (line,) = [line for line in recommendation_lines(report) if "model.int8.onnx in onnxruntime" in line]
    assert "is not recommended: " in line
    assert message in line
    assert report.recommended[0].precision == Embedder(folder).precision == "fp32"


def test_nothing_measured_is_nothing_recommended() -> None:
    assert recommend({}, [], threads=2, keep=True) == []
    assert not fastest_cache.cache_file().exists()


@pytest.mark.usefixtures("hurried")
def test_a_bench_changes_no_default_unless_asked_to(manifest: Manifest, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "tiny")
    say_verified(folder, {"model.fp32.onnx": True})
    bench([folder], manifest, teacher=None, out=tmp_path / "r", quick=True)
    assert not fastest_cache.cache_file().exists()
    report = bench([folder], manifest, teacher=None, out=tmp_path / "r", quick=True, remember=True)
    (found,) = report.recommended
    opened = Embedder(folder)
    assert (found.path, found.runtime) == (opened.file.name, opened.runtime)
    assert best_student(report).sha256 == found.sha256  # type: ignore[union-attr]


@pytest.mark.usefixtures("hurried")
def test_a_bench_remembers_verified_pairs_only(manifest: Manifest, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "tiny")
    report = bench([folder], manifest, teacher=None, out=tmp_path / "r", quick=True, remember=True)
    assert {row.runtime for row in report.rows} == {"onnxruntime", "openvino"}
    (value,) = json.loads(fastest_cache.cache_file().read_text()).values()
    assert [(one["path"], one["runtime"]) for one in value["measured"]] == [("model.fp32.onnx", "onnxruntime")]
    assert Embedder(folder).runtime == "onnxruntime"


@pytest.mark.usefixtures("hurried")
def test_a_runtime_that_cannot_open_a_file_is_skipped_with_its_reason(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("this operator is not known")

    monkeypatch.setattr("edgeembed.device.runtimes.openvino.OpenVinoSession._compiled_for", refuse)
    report = bench([write_bundle(tmp_path / "tiny")], manifest, teacher=None, out=tmp_path / "r", quick=True)
    assert {row.runtime for row in report.rows} == {"onnxruntime"}
    assert [item.name for item in report.skipped] == ["tiny fp32 (openvino)"]
    assert "this operator is not known" in report.skipped[0].reason
