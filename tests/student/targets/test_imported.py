"""Anybody's embeddings as a teacher: any dimension, Parquet or safetensors, found by path."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from edgeembed.data.manifest import Manifest, ManifestRow, build_manifest, read_manifest, write_manifest
from edgeembed.errors import UserError
from edgeembed.network.model_files import load_model
from edgeembed.student.targets.imported import import_targets, read_vectors
from tests.conftest import TINY_STUDENT, Outcome, as_options

Run = Callable[..., Outcome]


def write_parquet(path: Path, names: list[str], vectors: list[list[float]] | np.ndarray) -> Path:
    pa.parquet.write_table(pa.table({"path": names, "embedding": list(vectors)}), path)
    return path


@pytest.fixture
def drawn(tiny_data: Path) -> tuple[Manifest, np.ndarray]:
    manifest = read_manifest(tiny_data)
    return manifest, np.random.default_rng(0).standard_normal((len(manifest), 24))


def test_a_student_learns_from_embeddings_of_any_dimension(
    edgeembed: Run, drawn: tuple[Manifest, np.ndarray], tiny_data: Path, tmp_path: Path
) -> None:
    manifest, vector = drawn
    images = manifest.rows("train").size
    missing = int(manifest.rows("train")[0])
    names = [manifest.files[row] if row % 2 else manifest.path[row] for row in range(len(manifest)) if row != missing]
    file = write_parquet(tmp_path / "their.parquet", names, np.delete(vector, missing, axis=0))
    imported = tmp_path / "imported"
    made = edgeembed("targets", "import", file, "--data", tiny_data, "--out", imported, "--model", "dino", "--json")
    assert made.code == 0
    result = json.loads(made.stdout)
    assert (result["known"], result["images"], result["dim"]) == (images - 1, images, 24)
    keys = as_options([*TINY_STUDENT, "train.epochs=40", "optim.lr=0.01", "loss.anchor_kl=0.1"])
    outcome = edgeembed("distill", "--teacher", imported, "--recipe", "quickstart", "--out", tmp_path / "run", *keys)
    assert outcome.code == 0
    student, origin = load_model(tmp_path / "run")
    assert student.dim == 24
    assert origin.space_id == result["space_id"]
    assert origin.teacher is not None
    assert origin.teacher.backbone == "dino"
    assert set(json.loads((tmp_path / "run/eval.json").read_text())["scores"]) == {"symmetric", "asymmetric"}
    losses = [json.loads(line).get("loss") for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert losses[-2] < 0.8 * losses[0]

    # Begun by a version whose default was bf16, which means nothing for embeddings that are there.
    config = tmp_path / "run" / "config.yaml"
    before, _, targets = config.read_text().partition("targets:")
    config.write_text(before + "targets:" + targets.replace("precision: fp32", "precision: bf16", 1))
    resumed = edgeembed(
        "distill", "--teacher", imported, "--recipe", "quickstart", "--out", tmp_path / "run", *keys, "--resume"
    )
    assert resumed.code == 0, resumed.stderr
    again = edgeembed("targets", "import", file, "--data", tiny_data, "--out", imported)
    assert (again.code, "is not empty" in again.stderr) == (2, True)
    mixing = edgeembed(
        "distill", "--teacher", imported, "--set", "mix.mixup_probability=1", "--out", tmp_path / "m", *keys
    )
    assert (mixing.code, "holds no embeddings of mixed images" in mixing.stderr) == (2, True)
    asked = edgeembed("targets", "verify", imported, "--data", tiny_data, "--teacher", imported)
    assert asked.code == 2


def test_embeddings_of_a_run_keep_its_space(
    edgeembed: Run, tiny_teacher: Path, tiny_data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "e.safetensors"
    assert edgeembed("embed", tiny_data, "--model", tiny_teacher, "--out", file).code == 0
    made = edgeembed("targets", "import", file, "--data", tiny_data, "--out", tmp_path / "imported", "--json")
    assert json.loads(made.stdout)["space_id"] == load_model(tiny_teacher)[1].space_id


def test_half_floats_in_safetensors_are_read(tmp_path: Path) -> None:
    names = [b"a.jpg", "ü.jpg".encode()]
    tensors = {
        "embedding": np.array([[3.0, 4.0], [0.0, 2.0]], np.float16),
        "paths": np.frombuffer(b"".join(names), np.uint8),
        "path_offsets": np.array([0, 5, 11]),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "e.safetensors")
    found = read_vectors(tmp_path / "e.safetensors")
    assert found.paths == ("a.jpg", "ü.jpg")
    assert np.allclose(found.embedding_ND, [[0.6, 0.8], [0.0, 1.0]], atol=1e-3)
    assert len(found.space_id) == 16


@pytest.mark.parametrize(
    ("vectors", "told"),
    [
        ([[1.0, np.nan], [1.0, 0.0]], "1 of 2 embeddings have no length, first that of a.jpg (nan)"),
        ([[0.0, 0.0], [1.0, 0.0]], "first that of a.jpg (0), expected finite numbers"),
        ([[1.0], [1.0, 0.0]], "all of one length"),
        ([[1.0, 0.0], [1.0, 0.0]], "of 0 of 72 training images"),
    ],
)
def test_useless_files_are_refused_in_one_line(
    edgeembed: Run, tiny_data: Path, tmp_path: Path, vectors: list[list[float]], told: str
) -> None:
    file = write_parquet(tmp_path / "e.parquet", ["a.jpg", "b.jpg"], vectors)
    outcome = edgeembed("targets", "import", file, "--data", tiny_data, "--out", tmp_path / "imported")
    assert outcome.code == 2
    assert told in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "imported").exists()


def test_labels_pull_to_the_centres_of_the_teacher(
    edgeembed: Run, tiny_teacher: Path, tiny_data: Path, tmp_path: Path
) -> None:
    keys = as_options([*TINY_STUDENT, "loss.label=0.1", "loss.anchor_kl=0.1", "loss.anchors=32", "train.max_steps=3"])
    command = ["distill", "--teacher", tiny_teacher, "--data", tiny_data, "--recipe", "quickstart", *keys]
    assert edgeembed(*command, "--out", tmp_path / "run").code == 0
    refused = edgeembed(*command, "--out", tmp_path / "mixed", "--set", "mix.cutmix_probability=0.5")
    assert (refused.code, "mixed images have no label" in refused.stderr) == (2, True)


def test_embeddings_of_images_that_changed_since_are_refused(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tiny_data.parent, tmp_path / "data")
    manifest = replace(read_manifest(tiny_data), root=tmp_path / "data")
    write_manifest(data := tmp_path / "data.parquet", manifest)
    file, imported = tmp_path / "e.safetensors", tmp_path / "imported"
    assert edgeembed("embed", data, "--model", tiny_teacher, "--out", file).code == 0
    import_ = ["targets", "import", file, "--data", data, "--out", imported]
    assert edgeembed(*import_).code == 0
    keys = as_options([*TINY_STUDENT, "eval.every_steps=0", "train.max_steps=1", "train.checkpoint_every_steps=0"])
    distil = ["distill", "--teacher", imported, "--recipe", "quickstart", "--out", tmp_path / "run", *keys]
    os.utime(manifest.files[3], ns=(0, 0))
    changed = edgeembed(*distil)
    assert changed.code == 2
    assert "images changed since their embeddings were imported" in changed.stderr
    assert "run `edgeembed targets import` again" in changed.stderr
    shutil.rmtree(imported)
    assert edgeembed(*import_).code == 0
    described = json.loads((imported / "targets.json").read_text())
    del described["images"]  # as an earlier version wrote it
    (imported / "targets.json").write_text(json.dumps(described))
    assert edgeembed(*distil).code == 0
    assert "imported by an earlier version: not known to be of the images that are there" in caplog.text


def write_safetensors(path: Path, vectors: torch.Tensor, names: list[str], offsets: torch.dtype = torch.int64) -> Path:
    encoded = [name.encode() for name in names]
    ends = [0, *itertools.accumulate(map(len, encoded))]
    blob = torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8)
    tensors = {"embedding": vectors, "paths": blob, "path_offsets": torch.tensor(ends, dtype=offsets)}
    safetensors.torch.save_file(tensors, path)
    return path


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("offsets", [torch.int64, torch.int32])
def test_every_float_of_torch_is_read(tmp_path: Path, kind: torch.dtype, offsets: torch.dtype) -> None:
    vectors = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).to(kind)
    found = read_vectors(write_safetensors(tmp_path / "e.safetensors", vectors, ["a", "ü", "c"], offsets))
    expected = torch.nn.functional.normalize(vectors.double(), dim=1).numpy()
    assert np.allclose(found.embedding_ND, expected, atol=1e-6)
    assert found.embedding_ND.dtype == np.float32
    assert found.paths == ("a", "ü", "c")


@pytest.mark.parametrize(
    ("kind", "told"), [(torch.int8, "I8"), (torch.int64, "I64"), (torch.bool, "BOOL"), (torch.float8_e4m3fn, "F8_E4M3")]
)
def test_tensors_of_other_types_are_refused_by_name(tmp_path: Path, kind: torch.dtype, told: str) -> None:
    path = write_safetensors(tmp_path / "e.safetensors", torch.ones(2, 4).to(kind), ["a", "b"])
    with pytest.raises(UserError, match=rf"e\.safetensors: tensor embedding is {told}, expected .*bfloat16"):
        read_vectors(path)
    table = write_parquet(tmp_path / "e.parquet", ["a", "b"], np.ones((2, 4), np.int32))
    with pytest.raises(UserError, match=r"column embedding holds int32, expected floating point"):
        read_vectors(table)


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "e.safetensors", torch.ones(8, 4).bfloat16(), list("abcdefgh"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"e\.safetensors: not safetensors"):
        read_vectors(path)


@pytest.mark.parametrize("spelling", ["same", "absolute", "dotted"])
@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
def test_two_embeddings_of_one_image_are_refused(
    edgeembed: Run, drawn: tuple[Manifest, np.ndarray], tiny_data: Path, tmp_path: Path, spelling: str, suffix: str
) -> None:
    manifest, vector = drawn
    row = int(manifest.rows("train")[2])
    other = {"same": manifest.path[row], "absolute": manifest.files[row], "dotted": f"./{manifest.path[row]}"}[spelling]
    names, vectors = [*manifest.path, other], np.concatenate([vector, vector[row : row + 1] + 0.5])
    file = tmp_path / f"e{suffix}"
    if suffix == ".parquet":
        write_parquet(file, names, vectors)
    else:
        write_safetensors(file, torch.from_numpy(vectors), names)
    outcome = edgeembed("targets", "import", file, "--data", tiny_data, "--out", tmp_path / "imported")
    assert outcome.code == 2
    assert f"two different embeddings of one image, {manifest.path[row]}" in outcome.stderr
    assert f"(rows {row} and {len(manifest)}, cosine " in outcome.stderr
    assert not (tmp_path / "imported").exists()


def test_equal_embeddings_of_one_image_are_taken_once_and_counted(
    edgeembed: Run,
    drawn: tuple[Manifest, np.ndarray],
    tiny_data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    manifest, vector = drawn
    file = write_parquet(tmp_path / "e.parquet", [*manifest.path, *manifest.path[:5]], [*vector, *vector[:5]])
    outcome = edgeembed("targets", "import", file, "--data", tiny_data, "--out", tmp_path / "imported", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.stdout)["known"] == manifest.rows("train").size
    assert "5 embeddings repeat that of the same image: each is taken once" in caplog.text


def test_paths_match_in_both_unicode_forms(tmp_path: Path) -> None:
    for name in ("caf\u00e9.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    rows = [ManifestRow(path=name, label=None, domain="d", split="train") for name in ("caf\u00e9.png", "b.png")]
    manifest = build_manifest(tmp_path, rows, source="test")
    file = write_parquet(tmp_path / "e.parquet", ["cafe\u0301.png", "b.png"], np.eye(2, dtype=np.float32))
    assert import_targets(file, manifest, tmp_path / "imported")["known"] == 2
