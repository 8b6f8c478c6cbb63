from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from edgeembed.bench.report_schema import ByIndex, Report
from edgeembed.bench.run import bench
from edgeembed.bench.summary import best_student, file_summaries, headline, megabytes, milliseconds
from edgeembed.bench.terminal import print_summary
from edgeembed.data.manifest import Manifest
from edgeembed.device.runtimes import ONNX_RUNTIMES
from edgeembed.errors import CheckFailed, UserError
from edgeembed.machine import describe_machine
from edgeembed.metrics import not_scored
from edgeembed.size_ratio import size_text
from tests.bench.conftest import SPACE, write_bundle

pytestmark = pytest.mark.training  # beside a teacher, in torch

TOP_KEYS = {"schema", "machine", "versions", "data", "floor", "rows", "skipped", "recommended"}
ROW_KEYS = {
    "role", "name", "runtime", "provider", "precision", "batch", "threads", "size_bytes", "params", "macs",
    "latency_ms", "preprocess_ms", "end_to_end_ms", "images_per_second", "peak_rss_bytes", "load_ms",
    "percent_of_floor", "retrieval", "retention", "retention_ci95", "retention_ci95_queries",
    "retention_ci95_classes", "cosine_to_teacher", "untrained", "spread", "size_ratio", "sha256",
}  # fmt: skip
SCORE_KEYS = {"map", "map_at_100", "mp_at_5", "recall_at_1", "ci95", "ci95_queries", "ci95_classes"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, teacher: Path, hurried: None) -> Path:
    """The report of a bundle with a file that no machine can run, beside its teacher."""
    del hurried
    out = tmp_path_factory.mktemp("report")
    bundle = write_bundle(out / "tiny", extra={"model.fp16.plan": "tensorrt"})
    bench([bundle], manifest, teacher=teacher, out=out, quick=True)
    return out


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    """report.json as it stands on disk."""
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def opened(report: dict[str, Any]) -> Report:
    return Report.model_validate(report)


def test_an_opened_report_is_what_was_written(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(opened(report).as_json())) == report


@pytest.mark.parametrize(("key", "value"), [("size_bytes", "large"), ("latency_ms", {"p50": "short"})])
def test_a_value_of_a_wrong_type_is_refused(report: dict[str, Any], key: str, value: object) -> None:
    wrong = json.loads(json.dumps(report))
    wrong["rows"][0][key] = value
    with pytest.raises(ValidationError, match=rf"rows\.0\.{key}"):
        opened(wrong)


def test_every_key_is_there(report: dict[str, Any]) -> None:
    assert set(report) == TOP_KEYS
    assert {"fingerprint", "queries", "index", "labels", "unreadable", "split"} <= set(report["data"])
    assert report["data"]["unreadable"] == 1
    assert set(report["floor"]) == {"gemm_gflops", "copy_gb_per_s"}
    for row in report["rows"]:
        assert set(row) == ROW_KEYS
        assert set(row["latency_ms"]) == {"p50", "p90", "p95", "p99", "n", "warmup", "seconds"}
        assert set(row["retrieval"]) == {"symmetric", "asymmetric"}
        assert set(row["retrieval"]["symmetric"]) >= SCORE_KEYS
        for key in ("preprocess_ms", "end_to_end_ms", "images_per_second", "peak_rss_bytes", "load_ms", "size_bytes"):
            assert row[key] > 0
        assert re.fullmatch("[0-9a-f]{64}", row["sha256"])


def test_the_student_has_a_row_for_every_batch_and_thread_count(report: dict[str, Any]) -> None:
    rows = [row for row in report["rows"] if row["role"] == "student"]
    threads = sorted({1, describe_machine().cores})
    every = [(runtime, count, batch) for runtime in ONNX_RUNTIMES for count in threads for batch in (1, 8)]
    assert [(row["runtime"], row["threads"], row["batch"]) for row in rows] == every
    assert {(row["runtime"], row["provider"]) for row in rows} == {
        ("onnxruntime", "CPUExecutionProvider"),
        ("openvino", "CPU"),
    }
    for row in rows:
        own = rows[0]["retrieval"]["symmetric"]
        assert row["retrieval"]["symmetric"]["map"] == pytest.approx(own["map"], abs=1e-4)
    rows = [row for row in rows if row["runtime"] == "onnxruntime"]
    assert all(row["retrieval"] == rows[0]["retrieval"] for row in rows)
    assert set(rows[0]["retrieval"]["asymmetric"]) >= SCORE_KEYS
    assert set(rows[0]["retention"]) == {"symmetric", "asymmetric"}
    assert -1 <= rows[0]["cosine_to_teacher"]["p1"] <= rows[0]["cosine_to_teacher"]["p50"] <= 1
    assert rows[0]["params"] == rows[0]["macs"] == 12288


def test_the_teacher_is_measured_in_torch(report: dict[str, Any]) -> None:
    rows = [row for row in report["rows"] if row["role"] == "teacher"]
    assert [row["threads"] for row in rows] == sorted({1, describe_machine().cores})
    for row in rows:
        assert (row["runtime"], row["precision"], row["batch"]) == ("torch", "fp32", 1)
        assert (row["retrieval"]["asymmetric"], row["retention"], row["cosine_to_teacher"]) == (None, None, None)
        assert row["retention_ci95"] is None
        assert row["macs"] > 0


def test_retention_is_the_share_of_the_teachers_map(report: dict[str, Any]) -> None:
    by_role = {row["role"]: row for row in report["rows"]}
    best = by_role["teacher"]["retrieval"]["symmetric"]["map"]
    for kind, kept in by_role["student"]["retention"].items():
        assert math.isclose(kept, by_role["student"]["retrieval"][kind]["map"] / best)
        low, high = by_role["student"]["retention_ci95"][kind]
        assert low <= kept <= high
        both = [by_role["student"][f"retention_ci95_{over}"][kind] for over in ("queries", "classes")]
        assert high - low == max(end - start for start, end in both)


def test_retention_stands_beside_the_sizes_of_both_networks(folder: Path, report: dict[str, Any]) -> None:
    by_role = {row["role"]: row for row in report["rows"]}
    ratio = {key: by_role["teacher"][key] / by_role["student"][key] for key in ("params", "macs")}
    assert by_role["student"]["size_ratio"] == ratio
    assert by_role["teacher"]["size_ratio"] is None
    params, macs = (size_text(value) for value in ratio.values())
    assert f"of the teacher's mAP at {params} of its parameters and {macs} of its MACs, at " in headline(opened(report))
    assert f"<td>{params}</td><td>{macs}</td>" in (folder / "report.html").read_text()


def test_every_map_stands_beside_chance(folder: Path, report: dict[str, Any]) -> None:
    student = next(file for file in file_summaries(opened(report)) if file.role == "student")
    assert student.chance is not None
    assert 0 < student.chance < 1
    assert f"(chance {student.chance:.3f}" in headline(opened(report))
    page = (folder / "report.html").read_text()
    assert "<th>chance</th><th>untrained</th>" in page
    assert f">{student.chance:.4f}</td>" in page
    assert all(row["spread"]["images"] == 16 for row in report["rows"])


def test_a_report_that_could_not_be_scored_is_whole(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Rows without figures, as bench writes them where no query has a match."""
    empty = json.loads(json.dumps(report))
    empty["data"]["not_scored"] = "no labels"
    nothing = dataclasses.asdict(not_scored(0))
    for row in empty["rows"]:
        kinds = row["retrieval"]
        row["retrieval"] = {kind: None if scores is None else nothing for kind, scores in kinds.items()}
        for key in [key for key in row if key.startswith("retention")]:
            row[key] = row[key] and {"symmetric": None, "asymmetric": None}
    assert "its retrieval could not be scored" in headline(opened(empty))
    print_summary(opened(empty))
    assert "retrieval not scored: no labels" in capsys.readouterr().out
    page = pytest.importorskip("edgeembed.bench.page", reason="the page needs jinja2").render_html(opened(empty), [])
    assert "Retrieval was not scored: no labels." in page


@pytest.mark.usefixtures("hurried")
def test_a_bench_on_images_without_labels_measures_time_and_cosine(
    bundle: Path, manifest: Manifest, teacher: Path, tmp_path: Path
) -> None:
    unlabelled = dataclasses.replace(manifest, label=(None,) * len(manifest))
    report = bench([bundle], unlabelled, teacher=teacher, out=tmp_path, batches=(1,), quick=True)
    assert "none of the 17 images of the test split has a label" in str(report.data.not_scored)
    for row in report.rows:
        assert row.retrieval.symmetric is not None
        assert row.retrieval.symmetric.map is None
        assert row.latency_ms.p50 > 0
    student = next(row for row in report.rows if row.role == "student")
    assert student.cosine_to_teacher is not None
    assert student.cosine_to_teacher.p50 <= 1
    assert student.retention == ByIndex[float]()
    assert "Retrieval was not scored: " in (tmp_path / "report.html").read_text()


def test_a_report_of_an_earlier_version_can_still_be_shown(report: dict[str, Any]) -> None:
    older = json.loads(json.dumps(report))
    del older["data"]["not_scored"]
    for row in older["rows"]:
        for key in (
            "untrained",
            "spread",
            "size_ratio",
            "retention_ci95",
            "retention_ci95_queries",
            "retention_ci95_classes",
        ):
            del row[key]
        for scores in row["retrieval"].values():
            if scores:
                del scores["chance"], scores["ci95_queries"], scores["ci95_classes"]
    del older["data"]["queries_without_match"]
    assert "keeps" in headline(opened(older))
    assert "chance" not in headline(opened(older))
    print_summary(opened(older))
    page = pytest.importorskip("edgeembed.bench.page", reason="the page needs jinja2").render_html(opened(older), [])
    assert "over classes</th>" not in page
    low, high = older["rows"][-1]["retrieval"]["symmetric"]["ci95"]["map"]
    assert f"[{low:.3f}, {high:.3f}]" in page


def test_what_cannot_run_here_is_listed_with_its_reason(report: dict[str, Any]) -> None:
    assert [item["name"] for item in report["skipped"]] == ["tiny fp16 (tensorrt)"]
    assert report["skipped"][0]["reason"]


def test_the_page_needs_nothing_but_itself(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)""", page)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.findall(r"url\((?!#|['\"]?data:)|@import|<script|<link", page)
    assert page.count("<svg") == 1
    assert "data:image/jpeg;base64," in page
    assert "✓<span" in page
    assert "tiny fp16 (tensorrt)" in page
    assert 'name="viewport"' in page


def test_the_headline_names_the_file_and_what_it_keeps(folder: Path, report: dict[str, Any]) -> None:
    sentence = headline(opened(report))
    assert sentence.startswith("tiny fp32 keeps ")
    assert "of the teacher's mAP" in sentence
    assert sentence.replace("'", "&#39;") in (folder / "report.html").read_text()


def test_pictures_lie_beside_the_page(folder: Path) -> None:
    for name in ("pareto.png", "examples.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 300


def test_of_several_bundles_the_fastest_of_the_nearly_best_comes_first(report: dict[str, Any]) -> None:
    def row(name: str, map_: float, p50: float) -> dict[str, Any]:
        base = next(one for one in report["rows"] if one["role"] == "student")
        scores = {**base["retrieval"]["symmetric"], "map": map_}
        latency = {**base["latency_ms"], "p50": p50}
        return {**base, "name": name, "retrieval": {"symmetric": scores, "asymmetric": None}, "latency_ms": latency}

    rows = [row("slow", 0.9, 9.0), row("good", 0.895, 3.0), row("bad", 0.5, 1.0), row("refused", 0.9, 0.5)]
    keys = ("name", "runtime", "sha256", "threads")
    one = report["recommended"][0]
    named = [{**one, **{key: row[key] for key in keys}} for row in rows[:3]]
    best = best_student(opened({**report, "rows": rows, "recommended": named}))
    assert best is not None
    assert best.name == "good"
    assert best_student(opened({**report, "rows": rows, "recommended": []})) is None
    for unscored_row in rows:
        unscored_row["retrieval"] = {"symmetric": None, "asymmetric": None}
    unscored = best_student(opened({**report, "rows": rows, "recommended": named}))
    assert unscored is not None
    assert unscored.name == "bad"


def test_a_bundle_of_another_space_is_refused(tmp_path: Path, manifest: Manifest, teacher: Path) -> None:
    stranger = write_bundle(tmp_path / "stranger", space_id="f" * 16)
    with pytest.raises(UserError, match="f" * 16) as caught:
        bench([stranger], manifest, teacher=teacher, out=tmp_path / "out")
    assert SPACE in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_bundles_that_cannot_run_at_all_are_a_failure(tmp_path: Path, manifest: Manifest) -> None:
    folder = write_bundle(tmp_path / "plan", extra={"model.fp16.plan": "tensorrt"})
    described = json.loads((folder / "bundle.json").read_text())
    described["files"] = described["files"][1:]
    (folder / "bundle.json").write_text(json.dumps(described))
    with pytest.raises(CheckFailed, match="no file could be run"):
        bench([folder], manifest, teacher=None, out=tmp_path / "out")


def test_figures_are_written_for_people() -> None:
    assert [milliseconds(value) for value in (0.5812, 1, 12.34, 123.4, 2500, None)] == [
        "0.581 ms", "1.00 ms", "12.3 ms", "123 ms", "2.50 s", "\N{EN DASH}",
    ]  # fmt: skip
    assert (megabytes(10_600_000), megabytes(2.5e9)) == ("10.6 MB", "2.50 GB")
