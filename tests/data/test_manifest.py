"""Manifests: round trips, validation by name, the evaluation protocol."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgeembed.data.manifest import (
    COLUMNS,
    Manifest,
    ManifestRow,
    build_manifest,
    codes,
    read_manifest,
    write_manifest,
)
from edgeembed.data.remarks import summary
from edgeembed.errors import UserError


def row(path: str, label: str | None, split: str, role: str | None = None) -> ManifestRow:
    return ManifestRow(path=path, label=label, domain="toys", split=split, role=role)


def manifest(root: Path, *rows: ManifestRow) -> Manifest:
    return build_manifest(root, rows, source="test")


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_both_formats_read_back(tmp_path: Path, suffix: str) -> None:
    written = manifest(
        tmp_path, row("a b.jpg", "1", "train"), row("é.jpg", None, "train"), row("c", "2", "test", "query")
    )
    write_manifest(tmp_path / f"m.{suffix}", written)
    read = read_manifest(tmp_path / f"m.{suffix}")
    assert [getattr(read, name) for name in COLUMNS] == [getattr(written, name) for name in COLUMNS]
    assert read.files == written.files
    assert read.fingerprint == written.fingerprint


def test_a_moved_data_set_is_found_beside_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    write_manifest(tmp_path / "old" / "m.parquet", manifest(tmp_path / "old", row("a.jpg", "1", "train")))
    (tmp_path / "old").rename(tmp_path / "new")
    assert read_manifest(tmp_path / "new" / "m.parquet").files == (str(tmp_path / "new" / "a.jpg"),)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"path": ["a"], "label": ["1"], "domain": ["d"], "split": ["train"]}), tmp_path / "m.parquet"
    )
    with pytest.raises(UserError, match="lacks column 'role'"):
        read_manifest(tmp_path / "m.parquet")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path,label,domain,split,role\na,1,d,training,\n", "'training', expected one of train, val, test"),
        ("path,label,domain,split,role\na,1,d,test,gallery\n", "'gallery', expected one of query, index, both"),
        ("path,label,domain,split,role\n", "holds no images"),
        ("path,label,domain,split,role\n,1,d,train,\n", "column 'path' has an empty value in row 0"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(UserError) as caught:
        read_manifest(tmp_path / "m.csv")
    assert told in str(caught.value)


def test_csv_of_other_programs_is_read(tmp_path: Path) -> None:
    """A byte order mark, columns of their own in any order, quotes, empty lines, an absent value at the end."""
    text = '\ufefflabel,note,path,domain,split,role\n"a, b",x,"1,2.jpg",d,train,\n\n,,2.jpg,d,test,both\n'
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    read = read_manifest(tmp_path / "m.csv")
    assert read.path == ("1,2.jpg", "2.jpg")
    assert (read.label, read.role) == (("a, b", None), (None, "both"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "lacks column 'path'"),
        (b"path,label,domain,split,role\na,1,d,train\n", "line 2 has 4 values, expected 5"),
        (b"path,label,domain,split,role\n\xff,1,d,train,\n", "not a readable .csv table"),
        (b'path,label,domain,split,role\n"a"b,1,d,train,\n', "not a readable .csv table"),
    ],
)
def test_csv_that_cannot_be_read_is_refused_by_what_is_wrong(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(UserError, match=told):
        read_manifest(tmp_path / "m.csv")


def test_files_that_are_no_manifest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such manifest"):
        read_manifest(tmp_path / "none.parquet")
    (tmp_path / "m.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="not a readable"):
        read_manifest(tmp_path / "m.parquet")


def test_missing_images_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UserError, match=r"1 of 2 images .* first .*b.jpg"):
        manifest(tmp_path, row("a.jpg", "1", "train"), row("b.jpg", "2", "train")).require_files()


def test_class_codes_and_summary() -> None:
    table = manifest(Path(), row("0", "b", "train"), row("1", None, "train"), row("2", "a", "train"))
    rows = np.arange(3)
    names = table.class_names(rows)
    assert names == [("toys", "a"), ("toys", "b")]
    assert codes(names, table, rows).tolist() == [1, -1, 0]
    assert summary(table)["unlabelled"] == 1
