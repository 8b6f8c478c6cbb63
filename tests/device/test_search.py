"""Search in an index: against a sort of all similarities, and from every kind of file that `embed` writes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeembed
from edgeembed.device.embeddings import Embeddings, write_embeddings
from edgeembed.device.search import Index
from edgeembed.errors import UserError


def unit(count: int, dim: int, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def index_of(count: int, dim: int = 16) -> Index:
    paths = tuple(f"/{i}.jpg" for i in range(count))
    return Index(Embeddings(embedding_ND=unit(count, dim, 0), paths=paths, space_id="s", model="m"))


def test_search_agrees_with_sorting_every_similarity() -> None:
    index, query_QD = index_of(200), unit(9, 16, 1)
    positions, similarity = index.search(query_QD, 7)
    all_similar = query_QD @ index.embedding_ND.T
    expected = np.argsort(-all_similar, axis=1)[:, :7]
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_allclose(similarity, np.take_along_axis(all_similar, expected, axis=1), atol=1e-6)


def test_an_indexed_image_finds_itself_first() -> None:
    index = index_of(50)
    positions, similarity = index.search(index.embedding_ND, 1)
    np.testing.assert_array_equal(positions[:, 0], np.arange(50))
    np.testing.assert_allclose(similarity, 1.0, atol=1e-6)


def test_k_is_at_most_the_size_of_the_index() -> None:
    index = index_of(3)
    assert len(index) == 3
    assert index.search(unit(2, 16, 1), 10)[0].shape == (2, 3)


@pytest.mark.parametrize(
    ("query_QD", "k", "told"),
    [
        (unit(1, 8, 0), 1, "query embeddings have 8 dimensions and index embeddings 16"),
        (unit(1, 16, 0)[0], 1, r"query embeddings have shape \(16,\)"),
        (unit(1, 16, 0)[None], 1, r"query embeddings have shape \(1, 1, 16\)"),
        (np.full((1, 16), np.nan, np.float32), 1, "query embeddings hold NaN"),
        (unit(1, 16, 0), 0, "k is 0: choose 1 to 3"),
        (unit(1, 16, 0), -1, "k is -1"),
    ],
)
def test_queries_that_do_not_fit_and_a_k_below_one_are_refused(query_QD: np.ndarray, k: int, told: str) -> None:
    with pytest.raises(UserError, match=told):
        index_of(3).search(query_QD, k)


STORED = Embeddings(
    embedding_ND=unit(5, 16, 0),
    paths=("a.jpg", "b/c.jpg", "d.jpg", "e.jpg", "f.jpg"),
    space_id="space-a",
    model="tiny",
    labels=("mug", None, "cup", "cup", None),
    root="/images",
)


@pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".parquet", marks=pytest.mark.training), ".npy"])
def test_an_index_opens_every_kind_of_file_that_embed_writes(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"e{suffix}"
    write_embeddings(file, STORED)
    for path in (file, str(file)):
        index = edgeembed.Index.open(path)
        positions, similarities = index.search(unit(2, 16, 1), k=3)
        assert (positions.dtype, positions.shape) == (np.int64, (2, 3))
        assert (similarities.dtype, similarities.shape) == (np.float32, (2, 3))
        expected = index_of_stored().search(unit(2, 16, 1), k=3)
        np.testing.assert_array_equal(positions, expected[0])
        np.testing.assert_array_equal(similarities, expected[1])
        known = (STORED.paths, STORED.labels, STORED.space_id)
        assert (index.paths, index.labels, index.space_id) == ((None, None, None) if suffix == ".npy" else known)
        assert len(index) == 5


def index_of_stored() -> Index:
    return Index(STORED.embedding_ND)


def test_codes_of_fewer_bits_are_searched_as_the_vectors_they_decode_to(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "e.safetensors", dataclasses.replace(STORED, encoding="int8"))
    positions, similarities = Index.open(tmp_path / "e.safetensors").search(STORED.embedding_ND, 1)
    assert positions[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert similarities.min() > 0.999


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, r"e\.npy: no such file"),
        (b"", r"e\.npy: not a readable \.npy file"),
        (b"no array", r"e\.npy: not a readable \.npy file"),
        (unit(3, 16, 0).astype(np.float64), r"embedding is float64 \(3, 16\), expected float32 \(N, D\)"),
        (unit(3, 16, 0)[0], r"embedding is float32 \(16,\)"),
        (2 * unit(3, 16, 0), "embedding 0 has length 2, expected 1"),
        (np.array([{}]), "not a readable"),
    ],
)
def test_a_npy_file_that_holds_no_unit_vectors_is_refused(tmp_path: Path, content: Any, told: str) -> None:
    file = tmp_path / "e.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    with pytest.raises(UserError, match=told):
        Index.open(file)


def test_an_archive_of_arrays_is_no_npy_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", embedding=unit(3, 16, 0))
    (tmp_path / "e.npz").rename(tmp_path / "e.npy")
    with pytest.raises(UserError, match=r"is an \.npz archive, expected one \.npy array"):
        Index.open(tmp_path / "e.npy")


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected \.safetensors or \.parquet"):
        Index.open(tmp_path / "e.faiss")


def test_the_example_of_the_docstring_runs(bundle: Path, photos: Path, tmp_path: Path) -> None:
    embedder = edgeembed.Embedder(bundle)
    files = tuple(str(photos / f"photo{number}.png") for number in range(6))
    stored = Embeddings(embedding_ND=embedder.embed(files), paths=files, space_id=embedder.space_id, model="tiny")
    write_embeddings(tmp_path / "embeddings.safetensors", stored)
    index = edgeembed.Index.open(tmp_path / "embeddings.safetensors")
    positions, similarities = index.search(embedder.embed(files[4]), k=5)
    assert index.paths is not None
    assert index.paths[positions[0, 0]] == files[4]
    assert similarities[0, 0] == pytest.approx(1.0, abs=1e-6)


def test_searching_imports_neither_torch_nor_pyarrow(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "e.safetensors", STORED)
    program = f"""
import sys, edgeembed
assert "numpy" not in sys.modules, "import edgeembed costs something"
index = edgeembed.Index.open({str(tmp_path / "e.safetensors")!r})
assert index.search(index.embedding_ND, 1)[0][:, 0].tolist() == [0, 1, 2, 3, 4]
heavy = {{"torch", "pyarrow", "onnx", "onnxruntime", "pandas", "rich", "PIL"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
