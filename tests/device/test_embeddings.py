"""Stored embeddings: what is written comes back, what is damaged is refused, what cannot be written leaves no trace."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import safetensors.numpy

from edgeembed.device import embeddings as embeddings_module
from edgeembed.device.embedding_space import require_same_space
from edgeembed.device.embeddings import SCHEMA, Embeddings, read_embeddings, relative_paths, write_embeddings
from edgeembed.errors import UserError

Tensors = dict[str, Any]


def some_embeddings(count: int = 5, dim: int = 8) -> Embeddings:
    vectors = np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    paths = ("/a/b.jpg", "", "/ü/Käse 🧀.png", "/same.jpg", "/same.jpeg", *(f"/n/{i}.jpg" for i in range(count)))
    return Embeddings(embedding_ND=vectors, paths=paths[:count], space_id="0123abcd", model="vit_b16")


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
def test_what_is_written_comes_back(tmp_path: Path, suffix: str) -> None:
    written, file = some_embeddings(), tmp_path / "new" / f"e{suffix}"
    write_embeddings(file, written)
    read = read_embeddings(file)
    np.testing.assert_array_equal(read.embedding_ND, written.embedding_ND)
    assert read.embedding_ND.dtype == np.float32
    described = [field.name for field in dataclasses.fields(written) if field.name != "embedding_ND"]
    assert [getattr(read, name) for name in described] == [getattr(written, name) for name in described]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_safetensors_file_is_the_documented_one(tmp_path: Path) -> None:
    written = some_embeddings()
    write_embeddings(tmp_path / "e.safetensors", written)
    with safetensors.safe_open(tmp_path / "e.safetensors", framework="numpy") as file:
        assert file.metadata() == {"schema": SCHEMA, "space_id": "0123abcd", "model": "vit_b16"}
        assert set(file.keys()) == {"embedding", "paths", "path_offsets"}
        blob, offsets = file.get_tensor("paths"), file.get_tensor("path_offsets")
    assert (blob.dtype, offsets.dtype, offsets.shape) == (np.uint8, np.int64, (6,))
    assert blob.tobytes() == "".join(written.paths).encode()


def with_labels() -> Embeddings:
    labels = ("mug", None, "Käse", "mug", "[a] b")
    paths = ("a/0.jpg", "a/1.jpg", "b/ü.jpg", "b/3.jpg", "4.jpg")
    return dataclasses.replace(some_embeddings(), labels=labels, paths=paths, root="/photos/ü", model_path="/b/x")


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
def test_labels_root_and_model_come_back(tmp_path: Path, suffix: str) -> None:
    written, file = with_labels(), tmp_path / f"e{suffix}"
    write_embeddings(file, written)
    read = read_embeddings(file)
    for name in ("labels", "root", "model_path", "paths", "space_id", "model"):
        assert getattr(read, name) == getattr(written, name)
    assert read.files()[2] == os.path.join("/photos/ü", "b/ü.jpg")
    assert read.files("/elsewhere")[2] == os.path.join("/elsewhere", "b/ü.jpg")


def test_absolute_paths_have_no_root_to_move() -> None:
    written = some_embeddings()
    assert written.files() == written.paths
    with pytest.raises(UserError, match=r"--root /x: the index holds absolute paths: embed the images with --root"):
        written.files("/x")


def test_a_root_that_is_not_utf8_survives(tmp_path: Path) -> None:
    root = os.fsdecode(b"/caf\xe9")
    write_embeddings(tmp_path / "e.safetensors", dataclasses.replace(with_labels(), root=root))
    assert read_embeddings(tmp_path / "e.safetensors").root == root


def test_paths_relative_to_a_root_have_forward_slashes_and_lie_inside_it(tmp_path: Path) -> None:
    files = [str(tmp_path / "a" / "0.jpg"), str(tmp_path / "..b.jpg")]
    assert relative_paths(files, tmp_path) == ("a/0.jpg", "..b.jpg")
    with pytest.raises(UserError, match=r"0\.jpg: lies outside of --root .*other"):
        relative_paths(files, tmp_path / "other")


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
def test_two_vectors_of_one_path_are_refused_by_name_when_written_and_when_read(tmp_path: Path, suffix: str) -> None:
    twice = dataclasses.replace(some_embeddings(), paths=("a.jpg", "b.jpg", "c.jpg", "b.jpg", "d.jpg"))
    file = tmp_path / f"e{suffix}"
    with pytest.raises(UserError, match=r"embeddings 1 and 3 are both of 'b\.jpg'"):
        write_embeddings(file, twice)
    assert not file.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings_module, "check_embeddings", lambda *_: None)
        write_embeddings(file, twice)
    with pytest.raises(UserError, match=rf"e{suffix}: embeddings 1 and 3 are both of 'b\.jpg'"):
        read_embeddings(file)


def test_as_many_labels_as_paths(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4 labels for 5 paths"):
        write_embeddings(tmp_path / "e.safetensors", dataclasses.replace(with_labels(), labels=("x",) * 4))


def test_npy_holds_the_numbers_and_cannot_be_searched(tmp_path: Path) -> None:
    file = tmp_path / "e.npy"
    write_embeddings(file, some_embeddings())
    np.testing.assert_array_equal(np.load(file, allow_pickle=False), some_embeddings().embedding_ND)
    with pytest.raises(UserError, match=r"\.npy holds no paths"):
        read_embeddings(file)


def test_file_names_that_are_not_utf8_survive_in_safetensors_only(tmp_path: Path) -> None:
    odd = b"/photo\xff.jpg".decode("utf-8", "surrogateescape")
    written = dataclasses.replace(some_embeddings(1), paths=(odd,))
    write_embeddings(tmp_path / "e.safetensors", written)
    assert read_embeddings(tmp_path / "e.safetensors").paths == (odd,)
    with pytest.raises(UserError, match=r"1 paths are not UTF-8.*first /photo\\xff\.jpg: write \.safetensors"):
        write_embeddings(tmp_path / "e.parquet", written)
    assert not (tmp_path / "e.parquet").exists()


def test_an_unknown_suffix_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown suffix '\.safetensor'.*did you mean '\.safetensors'"):
        write_embeddings(tmp_path / "e.safetensor", some_embeddings())
    (tmp_path / "d.npy").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        write_embeddings(tmp_path / "d.npy", some_embeddings())
    with pytest.raises(UserError, match=r"e\.safetensors: no such file"):
        read_embeddings(tmp_path / "e.safetensors")


def break_(name: str, change: Callable[[Any], Any]) -> Callable[[Tensors], None]:
    def apply(tensors: Tensors) -> None:
        tensors[name] = np.ascontiguousarray(change(tensors[name]))

    return apply


DAMAGE: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "missing": (lambda tensors: tensors.pop("path_offsets"), "not a readable embeddings file"),
    "flat": (break_("embedding", np.ravel), "expected float32"),
    "double": (break_("embedding", lambda x: x.astype(np.float64)), "float64"),
    "no rows": (break_("embedding", lambda x: x[:0]), r"\(0, 8\)"),
    "fewer": (break_("embedding", lambda x: x[:-1]), "4 embeddings for 5 paths"),
    "nan": (
        break_("embedding", lambda x: np.where(np.arange(5)[:, None] == 2, np.nan, x)),
        "embedding 2 .* length nan",
    ),
    "long": (break_("embedding", lambda x: 2 * x), "embedding 0 .* length 2, expected 1"),
    "offsets start": (break_("path_offsets", lambda x: x + 1), "do not fit together"),
    "offsets fall": (break_("path_offsets", lambda x: x[[0, 2, 1, 3, 4, 5]] + [0, 0, -1, 0, 0, 0]), "do not fit"),
    "offsets end": (break_("path_offsets", lambda x: x[:-1]), "do not fit together"),
    "offsets kind": (break_("path_offsets", lambda x: x.astype(np.int32)), "do not fit together"),
    "offsets empty": (break_("path_offsets", lambda x: x[:0]), "do not fit together"),
    "blob kind": (break_("paths", lambda x: x.astype(np.int64)), "do not fit together"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "e.safetensors"
    write_embeddings(file, some_embeddings())
    tensors: Tensors = dict(safetensors.numpy.load_file(file))
    change, message = DAMAGE[damage]
    change(tensors)
    tensors = {
        name: value.astype(np.float32) if damage == "nan" and name == "embedding" else value
        for name, value in tensors.items()
    }
    facts = {"schema": SCHEMA, "space_id": "s", "model": "m"}
    safetensors.numpy.save_file(tensors, file, metadata=facts)
    with pytest.raises(UserError, match=rf"e\.safetensors: .*{message}"):
        read_embeddings(file)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    for suffix in (".safetensors", ".parquet"):
        (tmp_path / f"e{suffix}").write_bytes(content)
        with pytest.raises(UserError, match=rf"e{suffix}: not a readable"):
            read_embeddings(tmp_path / f"e{suffix}")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    for suffix in (".safetensors", ".parquet"):
        file = tmp_path / f"e{suffix}"
        write_embeddings(file, some_embeddings())
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(UserError, match="not a readable"):
            read_embeddings(file)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "e.safetensors"
    write_embeddings(file, some_embeddings())
    safetensors.numpy.save_file(safetensors.numpy.load_file(file), file, metadata={"schema": "edgeembed-embeddings/9"})
    with pytest.raises(UserError, match="schema 'edgeembed-embeddings/9', this version reads"):
        read_embeddings(file)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[0.6, 0.8], [1.0, 0.0]]), "expected a fixed-size list of float"),
        (pa.array([[0.6, 0.8], [1.0, 0.0]], pa.list_(pa.float64(), 2)), "expected a fixed-size list of float"),
        (  # pyarrow itself refuses it before version 26
            pa.array([[0.6, 0.8], None], pa.list_(pa.float32(), 2)),
            "without missing values|Expected all lists to be of size=2",
        ),
        (pa.array([[0.6, 0.8], [1.0, None]], pa.list_(pa.float32(), 2)), "length nan"),
        (None, "expected columns path and embedding"),
    ],
)
def test_a_parquet_table_of_another_kind_is_refused(tmp_path: Path, column: Any, message: str) -> None:
    columns = {"path": ["/a", "/b"], **({} if column is None else {"embedding": column})}
    table = pa.table(columns).replace_schema_metadata({"schema": SCHEMA, "space_id": "s", "model": "m"})
    pyarrow.parquet.write_table(table, tmp_path / "e.parquet")
    with pytest.raises(UserError, match=message):
        read_embeddings(tmp_path / "e.parquet")


def test_parquet_in_several_row_groups_is_read_whole(tmp_path: Path) -> None:
    written, file = some_embeddings(), tmp_path / "e.parquet"
    write_embeddings(file, written)
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(file), file, row_group_size=2)
    np.testing.assert_array_equal(read_embeddings(file).embedding_ND, written.embedding_ND)


def test_unsound_embeddings_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="5 embeddings for 1 paths"):
        write_embeddings(tmp_path / "e.npy", dataclasses.replace(some_embeddings(), paths=("/a",)))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file size")
@pytest.mark.parametrize("suffix", [".safetensors", ".parquet", ".npy"])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"e{suffix}"
    write_embeddings(file, some_embeddings())
    before = file.read_bytes()
    program = f"""
import resource, signal
from pathlib import Path
from edgeembed.device.embeddings import write_embeddings
from tests.device.test_embeddings import some_embeddings
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_embeddings(Path({str(file)!r}), some_embeddings(1000))
except OSError:
    raise SystemExit(7)
"""
    assert subprocess.run([sys.executable, "-B", "-c", program], check=False).returncode == 7
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_bytes() == before


def test_two_spaces_are_refused_by_both_names() -> None:
    require_same_space("a", "1", "b", "1")
    with pytest.raises(UserError, match="index is in embedding space aaa, model in bbb"):
        require_same_space("index", "aaa", "model", "bbb")
