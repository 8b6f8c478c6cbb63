from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeembed.bench import retrieval
from edgeembed.bench.candidates import find_candidates
from edgeembed.bench.examples import choose_examples
from edgeembed.bench.footprint import probe
from edgeembed.bench.report_schema import ByIndex, CosineToTeacher
from edgeembed.bench.retrieval import (
    DecodedFiles,
    TeacherReference,
    choose_protocol,
    common_rows,
    describe_data,
    embed_with_session,
    measure_quality,
)
from edgeembed.data.manifest import Manifest
from edgeembed.device.runtimes import open_session
from edgeembed.errors import CheckFailed, UserError
from edgeembed.evaluation import EmbeddedRows, RetrievalProtocol
from tests.bench.conftest import CLASSES, DIM, SIZE_PX, VIEWS, write_bundle

NUM_IMAGES = CLASSES * VIEWS + 1


READABLE = np.arange(NUM_IMAGES - 1)


def perfect(manifest: Manifest) -> EmbeddedRows:
    """One axis for each class; the broken file is known to be unreadable."""
    embedding_ND = np.zeros((NUM_IMAGES, DIM), np.float32)
    for row, label in enumerate(manifest.label):
        embedding_ND[row, int(str(label)[-1])] = 1
    return EmbeddedRows(embedding_ND=embedding_ND[READABLE], row_N=READABLE)


def reference(protocol: RetrievalProtocol, teacher: EmbeddedRows) -> TeacherReference:
    return TeacherReference(embedded=teacher, scored=measure_quality(protocol, teacher, READABLE).symmetric)


def test_a_session_embeds_what_can_be_decoded(bundle: Path, manifest: Manifest) -> None:
    protocol = choose_protocol(manifest)
    decoded = DecodedFiles(protocol.files, SIZE_PX, SIZE_PX)
    embedded = embed_with_session(open_session(bundle / "model.fp32.onnx"), decoded, protocol.rows, dim=DIM)
    assert embedded.row_N.tolist() == READABLE.tolist()
    assert embedded.embedding_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embedded.embedding_ND, axis=1), 1, rtol=1e-5)
    assert describe_data(protocol, embedded.row_N).model_dump() == {
        "fingerprint": manifest.fingerprint,
        "split": "test",
        "queries": CLASSES,
        "index": CLASSES * (VIEWS - 1),
        "labels": CLASSES,
        "unreadable": 1,
        "queries_without_match": 0,
        "unlabelled": 0,
        "not_scored": None,
        "domains": {name: {"queries": 2, "index": 2 * (VIEWS - 1)} for name in ("d0", "d1")},
    }


def test_streamed_files_are_those_kept_in_memory(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = DecodedFiles(manifest.files, 16, 24)
    monkeypatch.setattr(retrieval, "CACHE_BYTES", 0)
    streamed = DecodedFiles(manifest.files, 16, 24)
    assert kept.kept_NHWC is not None
    assert streamed.kept_NHWC is None
    for (one, pixels), (other, others) in zip(kept, streamed, strict=True):
        assert one == other
        np.testing.assert_array_equal(pixels, others)


def test_asymmetric_is_the_student_against_the_teachers_index(manifest: Manifest) -> None:
    """A student that is the teacher turned by one axis ranks its own index perfectly and the teacher's wrongly."""
    protocol, teacher = choose_protocol(manifest), perfect(manifest)
    turned = dataclasses.replace(teacher, embedding_ND=np.roll(teacher.embedding_ND, 1, axis=1))
    rows = common_rows(protocol, [turned, teacher])
    assert rows.tolist() == READABLE.tolist()
    quality = measure_quality(protocol, turned, rows, reference(protocol, teacher))
    symmetric, asymmetric = quality.scores.symmetric, quality.scores.asymmetric
    assert symmetric is not None
    assert asymmetric is not None
    assert symmetric.map == 1
    assert (asymmetric.recall_at_1 or 0) < 1
    share = quality.map_retention(lambda retention: retention.value)
    assert share == ByIndex[float](symmetric=1.0, asymmetric=asymmetric.map)
    for name in ("ci95", "ci95_queries", "ci95_classes"):
        interval = quality.map_retention(lambda retention, name=name: getattr(retention, name))
        assert interval is not None
        assert interval.symmetric == (1.0, 1.0)
        low, high = interval.asymmetric
        assert low <= share.asymmetric <= high
    assert quality.cosine_to_teacher == CosineToTeacher(p1=0.0, p50=0.0)


def test_a_short_student_searches_the_teachers_index_shortened(manifest: Manifest) -> None:
    protocol, teacher = choose_protocol(manifest), perfect(manifest)
    short = dataclasses.replace(teacher, embedding_ND=teacher.embedding_ND[:, :CLASSES])
    quality = measure_quality(protocol, short, READABLE, reference(protocol, teacher))
    assert quality.scores.asymmetric == quality.scores.symmetric
    assert quality.cosine_to_teacher == CosineToTeacher(p1=1.0, p50=1.0)


def test_without_a_teacher_nothing_is_compared_with_it(manifest: Manifest) -> None:
    quality = measure_quality(choose_protocol(manifest), perfect(manifest), READABLE)
    assert quality.scores.asymmetric is None
    assert (quality.retention, quality.cosine_to_teacher) == (None, None)
    assert quality.map_retention(lambda retention: retention.value) is None


def test_no_test_split_falls_back_to_val_with_a_warning(manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    moved = dataclasses.replace(manifest, split=("val",) * len(manifest), role=(None,) * len(manifest))
    protocol = choose_protocol(moved)
    assert protocol.split == "val"
    assert "measuring on val, which training may have looked at: test: retrieval is not scored" in caplog.text
    np.testing.assert_array_equal(protocol.query, protocol.index)


@pytest.mark.parametrize(
    ("changes", "split", "reason"),
    [
        ({"split": ("train",) * NUM_IMAGES}, "train", "the manifest has no test split"),
        ({"label": (None,) * NUM_IMAGES}, "test", f"none of the {NUM_IMAGES} images of the test split has a label"),
        ({"label": tuple(map(str, range(NUM_IMAGES)))}, "test", "has another image of its label and domain"),
        ({"role": ("query",) * NUM_IMAGES}, "test", "no rows of role query, or none of role index"),
    ],
)
def test_images_that_cannot_be_scored_are_embedded_with_a_warning(
    manifest: Manifest, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], split: str, reason: str
) -> None:
    protocol = choose_protocol(dataclasses.replace(manifest, **changes))
    assert (protocol.split, len(protocol.rows)) == (split, NUM_IMAGES)
    assert reason in str(protocol.not_scored)
    assert "retrieval is not scored" in caplog.text
    one = perfect(manifest)
    quality = measure_quality(protocol, one, READABLE, reference(protocol, one))
    scores = quality.scores
    assert scores.symmetric is not None
    assert scores.asymmetric is not None
    assert scores.symmetric.map is scores.asymmetric.map is None
    assert quality.map_retention(lambda retention: retention.value) == ByIndex()
    assert quality.cosine_to_teacher == CosineToTeacher(p1=1.0, p50=1.0)
    assert choose_examples(protocol, one, one, READABLE) == []
    assert describe_data(protocol, READABLE).not_scored == protocol.not_scored


def test_images_that_no_model_can_read_are_an_error(manifest: Manifest) -> None:
    nothing = perfect(manifest).take(np.zeros(0, np.int64))
    with pytest.raises(UserError, match=f"none of the {NUM_IMAGES} evaluation images can be decoded"):
        common_rows(choose_protocol(manifest), [nothing, perfect(manifest)])


def test_examples_show_hits_and_differences(manifest: Manifest) -> None:
    protocol, teacher = choose_protocol(manifest), perfect(manifest)
    confused_ND = teacher.embedding_ND.copy()
    confused_ND[0] = confused_ND[VIEWS]  # the student takes the first query for the second thing
    student = dataclasses.replace(teacher, embedding_ND=confused_ND)
    examples = choose_examples(protocol, student, teacher, READABLE)
    hits = [(example.results["student"][0].is_right, example.results["teacher"][0].is_right) for example in examples]
    assert hits == [(True, True)] * 3 + [(False, True)]
    assert examples[0].query.data_uri.startswith("data:image/jpeg;base64,")


def test_a_changed_byte_is_found_before_anything_runs(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "changed")
    content = bytearray((folder / "model.fp32.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "model.fp32.onnx").write_bytes(content)
    with pytest.raises(CheckFailed, match="sha256"):
        find_candidates([folder])


def test_bundles_of_one_name_are_told_apart_by_folder(tmp_path: Path) -> None:
    folders = [write_bundle(tmp_path / place / "same") for place in ("a", "b")]
    names = dict.fromkeys(candidate.name for candidate in find_candidates([*folders, folders[0]]))
    assert list(names) == [str(folder) for folder in folders]


def test_the_probe_counts_its_own_memory_only(bundle: Path) -> None:
    """In a child, ru_maxrss can show the parent's peak: here the parent holds torch and more."""
    ballast = np.ones(400 * 2**20, np.uint8)
    found = probe(bundle / "model.fp32.onnx", runtime="onnxruntime", threads=1, height=SIZE_PX, width=SIZE_PX)
    assert 10 * 2**20 < found.peak_rss_bytes < ballast.nbytes
    assert found.load_ms > 0


def test_the_probe_imports_no_torch() -> None:
    code = "import json, sys, edgeembed.bench.footprint; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False


def test_a_probe_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(RuntimeError, match="failed"):
        probe(tmp_path / "model.onnx", runtime="onnxruntime", threads=1, height=SIZE_PX, width=SIZE_PX)
