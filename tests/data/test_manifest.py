"""Manifests: round trips, validation by name, repeats, what the fingerprint covers."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgeembed.data import manifest as manifest_module
from edgeembed.data.manifest import (
    COLUMNS,
    Manifest,
    ManifestRow,
    build_manifest,
    class_indices,
    read_manifest,
    write_manifest,
)
from edgeembed.data.summary import summary
from edgeembed.data.tables import read_table
from edgeembed.errors import UserError


def row(path: str, label: str | None, split: str, role: str | None = None, repeat: int = 1) -> ManifestRow:
    return ManifestRow(path=path, label=label, domain="toys", split=split, role=role, repeat=repeat)


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
    ("text", "message"),
    [
        ("path,label,domain,split,role\na,1,d,training,\n", "'training', expected one of train, val, test"),
        ("path,label,domain,split,role\na,1,d,test,gallery\n", "'gallery', expected one of query, index, both"),
        ("path,label,domain,split,role\n", "holds no images"),
        ("path,label,domain,split,role\n,1,d,train,\n", "column 'path' has an empty value in row 0"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(UserError) as caught:
        read_manifest(tmp_path / "m.csv")
    assert message in str(caught.value)


def test_csv_of_other_programs_is_read(tmp_path: Path) -> None:
    """A byte order mark, columns of their own in any order, quotes, empty lines, an absent value at the end."""
    text = '\ufefflabel,note,path,domain,split,role\n"a, b",x,"1,2.jpg",d,train,\n\n,,2.jpg,d,test,both\n'
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    read = read_manifest(tmp_path / "m.csv")
    assert read.path == ("1,2.jpg", "2.jpg")
    assert (read.label, read.role) == (("a, b", None), (None, "both"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lacks column 'path'"),
        (b"path,label,domain,split,role\na,1,d,train\n", "line 2 has 4 values, expected 5"),
        (b"path,label,domain,split,role\n\xff,1,d,train,\n", "not a readable .csv table"),
        (b'path,label,domain,split,role\n"a"b,1,d,train,\n', "not a readable .csv table"),
    ],
)
def test_csv_that_cannot_be_read_is_refused_by_what_is_wrong(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
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
    assert class_indices(names, table, rows).tolist() == [1, -1, 0]
    assert summary(table)["unlabelled"] == 1


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_repeats_read_back_and_are_written_only_where_a_row_is_not_visited_once(tmp_path: Path, suffix: str) -> None:
    rows = [row("a", "1", "train", repeat=3), row("b", "1", "train"), row("c", "1", "train", repeat=0)]
    rows += [row("d", None, "train", repeat=2), row("e", "1", "test")]
    write_manifest(tmp_path / f"m.{suffix}", manifest(tmp_path, *rows))
    read = read_manifest(tmp_path / f"m.{suffix}")
    assert read.repeat == (3, 1, 0, 2, 1)
    assert read.visits(np.array([2, 0])).tolist() == [0, 3]
    assert read.training_rows().tolist() == [0, 1, 3]
    assert read.take(np.array([3, 2])).repeat == (2, 0)
    assert summary(read)["visits"] == 6
    write_manifest(tmp_path / f"once.{suffix}", read.take(np.array([1, 4])))
    once = read_manifest(tmp_path / f"once.{suffix}")
    assert (once.repeat, once.visits(np.arange(2)).tolist()) == (None, [1, 1])
    assert read_table(tmp_path / f"m.{suffix}", COLUMNS).header == (*COLUMNS, "repeat")
    assert read_table(tmp_path / f"once.{suffix}", COLUMNS).header == COLUMNS


@pytest.mark.parametrize(
    ("cell", "repeat"), [("", 1), ("0", 0), ("2", 2), ("2.0", 2), (" 3 ", 3), ("1000000", 1_000_000), ("007", 7)]
)
def test_a_repeat_is_read_as_people_write_it(tmp_path: Path, cell: str, repeat: int) -> None:
    (tmp_path / "m.csv").write_text(f"path,label,domain,split,role,Repeat\na,1,d,train,,5\nb,1,d,train,,{cell}\n")
    assert read_manifest(tmp_path / "m.csv").repeat == (5, repeat)


@pytest.mark.parametrize("cell", ["-1", "1.5", "x", "inf", "nan", "1e3", "1_0", "\u0663", "1000001", "9" * 30, "True"])
def test_a_wrong_repeat_is_named_with_its_row(tmp_path: Path, cell: str) -> None:
    (tmp_path / "m.csv").write_text(
        f"path,label,domain,split,role,repeat\na,1,d,train,,5\nb,1,d,train,,{cell}\n", encoding="utf-8"
    )
    with pytest.raises(UserError, match=rf"column 'repeat' holds {cell} in row 1 \(.*expected a whole number from 0"):
        read_manifest(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("column", "read"), [([2, 0], (2, 0)), ([2.0, None], (2, 1)), (["2", ""], (2, 1)), ([None, None], None)]
)
def test_data_frames_may_hold_repeats_in_any_type(tmp_path: Path, column: list[Any], read: tuple[int, ...]) -> None:
    columns = {"path": ["a", "b"], "label": ["1"] * 2, "domain": ["d"] * 2, "split": ["train"] * 2, "role": [None] * 2}
    pq.write_table(pa.table({**columns, "repeat": column}), tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet").repeat == read


def test_a_manifest_built_in_python_cannot_have_a_wrong_repeat(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="column 'repeat' holds -2 in row 1"):
        manifest(tmp_path, row("a", "1", "train"), row("b", "1", "train", repeat=-2))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_equal_rows_are_read_as_one_that_is_visited_as_often(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row("a", "1", "train"), row("b", "1", "train"), row("a", "1", "train"), row("a", "1", "train", repeat=4)]
    rows += [row("b", "2", "train"), row("b", "1", "train", repeat=0), row("c", "1", "train", "index", repeat=0)]
    write_manifest(tmp_path / f"m.{suffix}", manifest(tmp_path, *rows))
    with caplog.at_level(logging.INFO):
        read = read_manifest(tmp_path / f"m.{suffix}")
    assert list(zip(read.path, read.label, read.repeat or (), strict=True)) == [
        ("a", "1", 6),
        ("b", "1", 1),
        ("b", "2", 1),
        ("c", "1", 0),
    ]
    assert read.source == tmp_path / f"m.{suffix}"
    assert "3 duplicate rows are merged" in caplog.text
    assert "4 of 7 rows are left" in caplog.text


def images(root: Path, count: int = 4) -> Manifest:
    """A manifest of files that hold their number."""
    root.mkdir(exist_ok=True)
    for number in range(count):
        (root / f"{number}.jpg").write_bytes(b"%05d" % number)
    return manifest(root, *(row(f"{number}.jpg", "1", "train") for number in range(count)))


@pytest.mark.parametrize(
    ("change", "is_seen"),
    [
        (lambda root: (root / "2.jpg").write_bytes(b"0000X"), True),
        (lambda root: (root / "2.jpg").unlink(), True),
        (lambda root: os.replace(root / "3.jpg", root / "2.jpg"), True),
        (lambda root: os.utime(root / "2.jpg", ns=(0, 1)), False),
        (lambda root: (root / "other.jpg").write_bytes(b"x"), False),
    ],
)
def test_the_fingerprint_changes_with_the_bytes_of_an_image(
    tmp_path: Path, change: Callable[[Path], object], is_seen: bool
) -> None:
    before = images(tmp_path).fingerprint
    table = manifest(tmp_path, *(row(f"{number}.jpg", "1", "train") for number in range(4)))
    assert table.fingerprint == before
    change(tmp_path)
    changed = table.take(np.arange(4)).fingerprint
    assert (changed != before) == is_seen


def test_the_fingerprint_is_the_same_under_another_root(tmp_path: Path) -> None:
    before = images(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "copy", copy_function=shutil.copyfile)
    copied = manifest(tmp_path / "copy", *(row(f"{number}.jpg", "1", "train") for number in range(4)))
    assert copied.fingerprint == before.fingerprint


def test_the_fingerprint_covers_each_column_and_the_repeat(tmp_path: Path) -> None:
    images(tmp_path)
    tables = [
        manifest(tmp_path, row("0.jpg", "1", "train"), one)
        for one in (
            row("1.jpg", "1", "train"),
            row("2.jpg", "1", "train"),
            row("1.jpg", "2", "train"),
            row("1.jpg", "1", "test"),
            row("1.jpg", "1", "train", "index"),
            row("1.jpg", "1", "train", repeat=2),
            row("1.jpg", "1", "train", repeat=0),
        )
    ]
    assert len({table.fingerprint for table in tables}) == len(tables)
    rows = np.arange(2)
    assert tables[0].fingerprint_of(rows) == tables[5].fingerprint_of(rows) == tables[0].fingerprint


def test_missing_images_have_a_fingerprint_too(tmp_path: Path) -> None:
    table = manifest(tmp_path, row("gone.jpg", "1", "train"))
    before = table.fingerprint
    (tmp_path / "gone.jpg").write_bytes(b"x")
    assert table.take(np.arange(1)).fingerprint != before


def test_of_a_large_set_the_fingerprint_reads_an_even_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 21 images, 11 are every second one; a row twice is no second image."""
    read: list[str] = []

    def images_id(files: list[str], *, by: str) -> str:
        read.extend(Path(file).name for file in files)
        return by

    monkeypatch.setattr(manifest_module, "FINGERPRINT_IMAGES", 11)
    monkeypatch.setattr(manifest_module, "images_id", images_id)
    table = images(tmp_path, 21)
    twice = table.take(np.repeat(np.arange(21), 2))
    assert len({table.fingerprint, twice.fingerprint}) == 2
    assert read == [f"{number}.jpg" for number in range(0, 21, 2)] * 2


def test_a_large_set_has_one_image_less_in_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 101 images, 100 are read, the first and the last among them; which is left out is numpy's rounding."""
    monkeypatch.setattr(manifest_module, "FINGERPRINT_IMAGES", 100)
    table = images(tmp_path, 101)
    seen, before = [], table.fingerprint
    for number in range(101):
        (tmp_path / f"{number}.jpg").write_bytes(b"other")
        after = table.take(np.arange(101)).fingerprint
        seen.append(after != before)
        before = after
    assert (seen.count(False), seen[0], seen[100]) == (1, True, True)
