from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeembed.arrays import BoolArray
from edgeembed.bench import retrieval
from edgeembed.bench.candidates import find_candidates
from edgeembed.bench.examples import choose_examples
from edgeembed.bench.footprint import probe
from edgeembed.bench.retrieval import (
    DecodedFiles,
    Embedded,
    EvaluationSet,
    Reference,
    describe_data,
    embed_with_session,
    evaluation_set,
    judge,
    readable_by_all,
)
from edgeembed.data.manifest import Manifest
from edgeembed.device.runtimes import open_session
from edgeembed.errors import CheckFailed, UserError
from tests.bench.conftest import CLASSES, DIM, SIZE_PX, VIEWS, write_bundle

NUM_IMAGES = CLASSES * VIEWS + 1


def perfect(manifest: Manifest) -> Embedded:
    """One axis a class; the broken file is known to be unreadable."""
    embedding_ND = np.zeros((NUM_IMAGES, DIM), np.float32)
    for row, label in enumerate(manifest.label):
        embedding_ND[row, int(str(label)[-1])] = 1
    return Embedded(embedding_ND=embedding_ND, readable_N=np.arange(NUM_IMAGES) < NUM_IMAGES - 1)


def reference(evaluation: EvaluationSet, teacher: Embedded, readable_N: BoolArray) -> Reference:
    return Reference(embedded=teacher, scored=judge(evaluation, teacher, readable_N).symmetric)


def test_a_session_embeds_what_can_be_decoded(bundle: Path, manifest: Manifest) -> None:
    evaluation = evaluation_set(manifest)
    decoded = DecodedFiles(evaluation.files, SIZE_PX, SIZE_PX)
    embedded = embed_with_session(open_session(bundle / "model.fp32.onnx"), decoded, dim=DIM)
    assert embedded.readable_N.tolist() == [True] * (NUM_IMAGES - 1) + [False]
    np.testing.assert_allclose(np.linalg.norm(embedded.embedding_ND[:-1], axis=1), 1, rtol=1e-5)
    assert describe_data(evaluation, embedded.readable_N) == {
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
    evaluation, teacher = evaluation_set(manifest), perfect(manifest)
    turned = dataclasses.replace(teacher, embedding_ND=np.roll(teacher.embedding_ND, 1, axis=1))
    readable_N = readable_by_all([turned, teacher])
    quality = judge(evaluation, turned, readable_N, reference(evaluation, teacher, readable_N))
    assert quality.retrieval["symmetric"]["map"] == 1
    assert quality.retrieval["asymmetric"]["recall_at_1"] < 1
    facts = quality.row_facts()
    assert facts["retention"] == {"symmetric": 1.0, "asymmetric": quality.retrieval["asymmetric"]["map"]}
    for key in ("retention_ci95", "retention_ci95_queries", "retention_ci95_classes"):
        assert facts[key]["symmetric"] == (1.0, 1.0)
        low, high = facts[key]["asymmetric"]
        assert low <= facts["retention"]["asymmetric"] <= high
    assert quality.cosine_to_teacher == {"p1": 0.0, "p50": 0.0}


def test_without_a_teacher_nothing_is_said_of_it(manifest: Manifest) -> None:
    one = perfect(manifest)
    quality = judge(evaluation_set(manifest), one, one.readable_N)
    assert quality.retrieval["asymmetric"] is None
    assert (quality.retention, quality.cosine_to_teacher) == (None, None)


def test_no_test_split_falls_back_to_val_and_says_so(manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    moved = dataclasses.replace(manifest, split=("val",) * len(manifest), role=(None,) * len(manifest))
    evaluation = evaluation_set(moved)
    assert evaluation.split == "val"
    assert "val" in caplog.text
    np.testing.assert_array_equal(evaluation.query, evaluation.index)


@pytest.mark.parametrize(
    ("changes", "split", "reason"),
    [
        ({"split": ("train",) * NUM_IMAGES}, "train", "the manifest has no test split"),
        ({"label": (None,) * NUM_IMAGES}, "test", f"none of the {NUM_IMAGES} images of the test split has a label"),
        ({"label": tuple(map(str, range(NUM_IMAGES)))}, "test", "has another image of its label and domain"),
        ({"role": ("query",) * NUM_IMAGES}, "test", "no rows of role query, or none of role index"),
    ],
)
def test_what_cannot_be_scored_is_said_and_still_embedded(
    manifest: Manifest, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], split: str, reason: str
) -> None:
    evaluation = evaluation_set(dataclasses.replace(manifest, **changes))
    assert (evaluation.split, len(evaluation.rows)) == (split, NUM_IMAGES)
    assert reason in str(evaluation.not_scored)
    assert "retrieval is not scored" in caplog.text
    one = perfect(manifest)
    quality = judge(evaluation, one, one.readable_N, reference(evaluation, one, one.readable_N))
    assert quality.retrieval["symmetric"]["map"] is quality.retrieval["asymmetric"]["map"] is None
    assert quality.retention == {"symmetric": None, "asymmetric": None}
    assert quality.cosine_to_teacher == {"p1": 1.0, "p50": 1.0}
    assert choose_examples(evaluation, one, one, one.readable_N) == []
    assert describe_data(evaluation, one.readable_N)["not_scored"] == evaluation.not_scored


def test_images_that_nobody_can_read_are_an_error() -> None:
    blind = Embedded(embedding_ND=np.zeros((2, DIM), np.float32), readable_N=np.zeros(2, np.bool_))
    with pytest.raises(UserError, match="none of the 2"):
        readable_by_all([blind])


def test_examples_show_hits_and_differences(manifest: Manifest) -> None:
    evaluation, teacher = evaluation_set(manifest), perfect(manifest)
    confused_ND = teacher.embedding_ND.copy()
    confused_ND[0] = confused_ND[VIEWS]  # the student takes the first query for the second thing
    student = dataclasses.replace(teacher, embedding_ND=confused_ND)
    examples = choose_examples(evaluation, student, teacher, readable_by_all([student, teacher]))
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
