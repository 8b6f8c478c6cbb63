"""Short embeddings: the leading dimensions of a PCA-rotated space are exported, and searched in indexes of all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeembed.data.manifest import read_manifest
from edgeembed.device.bundle import read_bundle
from edgeembed.device.embedder import Embedder
from edgeembed.device.embedding_space import shorten
from edgeembed.device.embeddings import read_embeddings
from edgeembed.files import read_json, write_json
from tests.conftest import Outcome

Run = Callable[..., Outcome]


@pytest.fixture
def short(edgeembed: Run, tiny_student: Path, tmp_path: Path) -> Path:
    out = tmp_path / "short"
    outcome = edgeembed("export", tiny_student, "--out", out, "--precision", "fp32", "--dim", 16)
    assert outcome.code == 0, outcome.stderr
    return out


def test_a_short_bundle_gives_the_leading_dimensions_of_the_embedding(
    edgeembed: Run, short: Path, tiny_student: Path, tiny_data: Path, tmp_path: Path
) -> None:
    manifest = read_bundle(short)
    assert manifest.embedding.dim == 16
    assert manifest.space_id == read_json(tiny_student / "model.json")["space_id"] + ":16"
    files = read_manifest(tiny_data).files[:10]
    assert edgeembed("embed", *files, "--model", tiny_student, "--out", tmp_path / "e.safetensors").code == 0
    whole = read_embeddings(tmp_path / "e.safetensors").embedding_ND
    assert np.allclose(Embedder(short).embed(files), shorten(whole, 16), atol=1e-4)


def test_it_searches_the_index_of_the_teacher_and_the_other_way_round(
    edgeembed: Run, short: Path, tiny_teacher: Path, tiny_student: Path, tiny_data: Path, tmp_path: Path
) -> None:
    files = read_manifest(tiny_data).files[:12]
    for model, index in ((tiny_teacher, "long.safetensors"), (short, "short.safetensors")):
        assert edgeembed("embed", *files, "--model", model, "--out", tmp_path / index).code == 0
    for model, index in ((short, "long.safetensors"), (tiny_student, "short.safetensors")):
        found = edgeembed("search", files[0], "--index", tmp_path / index, "--model", model, "--json")
        assert found.code == 0
        assert len(json.loads(found.stdout)["queries"][0]["results"]) == 5


def test_bench_compares_it_with_its_teacher(
    edgeembed: Run, short: Path, tiny_teacher: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    outcome = edgeembed("bench", short, "--teacher", tiny_teacher, "--data", tiny_data, "--out", out, "--quick")
    assert outcome.code == 0, outcome.stderr
    rows = json.loads((out / "report.json").read_text())["rows"]
    student = next(row for row in rows if row["role"] == "student")
    assert student["retention"]["asymmetric"] > 0
    assert student["cosine_to_teacher"]["p50"] <= 1.0


def test_dimensions_that_cannot_be_exported_are_refused(edgeembed: Run, tiny_student: Path, tmp_path: Path) -> None:
    outcome = edgeembed("export", tiny_student, "--out", tmp_path / "b", "--dim", 65)
    assert (outcome.code, "has 64 embedding dimensions" in outcome.stderr) == (2, True)
    early = tmp_path / "early"
    shutil.copytree(tiny_student, early)
    facts = read_json(early / "model.json")
    facts["embedding"]["ordered"] = False
    write_json(early / "model.json", facts)
    outcome = edgeembed("export", early, "--out", tmp_path / "b", "--dim", 16)
    assert (outcome.code, "is not PCA-rotated" in outcome.stderr) == (2, True)
