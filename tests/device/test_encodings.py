"""Embeddings in fewer bytes: what is lost, and that files of every encoding are searched alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from edgeembed.device.embeddings import Embeddings, read_embeddings, write_embeddings
from edgeembed.device.encodings import ENCODINGS, decode, fit_rotation
from edgeembed.errors import UserError
from edgeembed.metrics import top_k
from tests.conftest import Outcome

Run = Callable[..., Outcome]


def clustered(count: int = 600, dim: int = 64) -> np.ndarray:
    """Unit vectors around 30 centres that lie in a few of the dimensions, as those of trained models do."""
    draw = np.random.default_rng(0)
    centre = draw.standard_normal((30, dim)) * np.geomspace(1.0, 0.01, dim)
    vector = centre[np.arange(count) % 30] + 0.15 * draw.standard_normal((count, dim)) * np.geomspace(1.0, 0.01, dim)
    return (vector / np.linalg.norm(vector, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("name", "least_cosine", "bytes_each"), [("int8", 0.999, 64), ("binary", 0.6, 8)])
def test_decoded_vectors_are_near(name: str, least_cosine: float, bytes_each: int) -> None:
    vector = clustered()
    encoded = ENCODINGS[name](vector)
    assert encoded.code.nbytes == bytes_each * len(vector)
    found = decode(encoded)
    assert np.allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    assert (found * vector).sum(axis=1).min() > least_cosine
    nearest, _ = top_k(vector, found, 5)
    assert (nearest % 30 == np.arange(len(vector))[:, None] % 30).mean() > 0.95


def test_the_rotation_is_one_and_fits_better_than_none() -> None:
    vector = clustered()
    rotation = fit_rotation(vector)
    assert np.allclose(rotation @ rotation.T, np.eye(64), atol=1e-5)

    def corner_cosine(turned: np.ndarray) -> float:
        return float(np.abs(turned).sum(axis=1).mean() / 8.0)

    assert corner_cosine(vector @ rotation.T) > corner_cosine(vector) + 0.1


@pytest.mark.parametrize("name", ["int8", "binary"])
@pytest.mark.parametrize("dim", [64, 13])
def test_files_hold_them_and_read_as_unit_vectors(tmp_path: Path, name: str, dim: int) -> None:
    paths = tuple(f"{number}.jpg" for number in range(50))
    whole = Embeddings(embedding_ND=clustered(50, dim), paths=paths, space_id="s", model="m", encoding=name)
    file = tmp_path / "e.safetensors"
    write_embeddings(file, whole)
    found = read_embeddings(file)
    assert (found.encoding, found.paths, found.space_id) == (name, paths, "s")
    assert np.array_equal(found.embedding_ND, decode(ENCODINGS[name](whole.embedding_ND)))
    with pytest.raises(UserError, match=r"kept in \.safetensors only"):
        write_embeddings(tmp_path / "e.parquet", whole)
    with pytest.raises(UserError, match="unknown encoding 'int9'"):
        write_embeddings(file, replace(whole, encoding="int9"))


def test_a_file_that_is_not_what_it_says_is_refused(tmp_path: Path) -> None:
    whole = Embeddings(
        embedding_ND=clustered(4), paths=("a", "b", "c", "d"), space_id="s", model="m", encoding="binary"
    )
    write_embeddings(tmp_path / "e.safetensors", whole)
    with safetensors.safe_open(tmp_path / "e.safetensors", framework="numpy") as file:
        tensors, facts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    broken = tmp_path / "broken.safetensors"
    for change, facts_too in (
        ({"embedding": tensors["embedding"][:, :7].copy()}, {}),
        ({"rotation": tensors["rotation"][:, :7].copy()}, {}),
        ({}, {"encoding": "int8"}),
        ({}, {"encoding": "ternary"}),
    ):
        safetensors.numpy.save_file({**tensors, **change}, broken, {**facts, **facts_too})
        with pytest.raises(UserError, match="embed the images again"):
            read_embeddings(broken)


def test_a_binary_index_is_searched(edgeembed: Run, tiny_data: Path, tmp_path: Path) -> None:
    index = tmp_path / "index.safetensors"
    made = edgeembed("embed", tiny_data, "--out", index, "--encoding", "binary", "--json")
    assert json.loads(made.stdout)["encoding"] == "binary"
    image = next(tiny_data.parent.glob("**/*.jpg"), None) or next(tiny_data.parent.glob("**/*.png"))
    found = edgeembed("search", image, "--index", index, "--json")
    assert found.code == 0
    results = json.loads(found.stdout)["queries"][0]["results"]
    assert any(Path(result["path"]).name == image.name for result in results)
