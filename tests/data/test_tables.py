"""Tables that other programs saved: CSV dialects, encodings, empty cells, and other spellings of paths."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from edgeembed.data.manifest import COLUMNS, read_manifest
from edgeembed.data.tables import read_table
from edgeembed.errors import UserError

ROWS = [
    ["path", "label", "domain", "split", "role"],
    ["a.png", "Café", "pets", "train", ""],
    ["b.png", "", "pets", "test", "both"],
]
EXPECTED = (("a.png", "b.png"), ("Café", None), ("pets", "pets"), ("train", "test"), (None, "both"))


def joined(delimiter: str, end: str = "\n") -> str:
    return "".join(delimiter.join(row) + end for row in ROWS)


@pytest.mark.parametrize(
    "content",
    [
        joined(";", "\r\n").encode(),
        joined("\t").encode(),
        joined("|").encode(),
        joined(",", "\r").encode(),
        b"sep=;\r\n" + joined(";", "\r\n").encode(),
        joined(";").encode("utf-8-sig"),
        joined("\t", "\r\n").encode("utf-16"),  # "Unicode text" of Excel
        joined(",").encode("utf-32"),
        ("\n\n" + joined(",") + "\n  \n").encode(),
        (joined(";") + ";;;;\r\n;;;;\r\n").encode(),
        joined(", ").encode(),
        joined(" ; ").encode(),
        joined(",").replace("path,label", " Path , LABEL ").encode(),
        "".join(",".join(f'"{value}"' for value in row) + "\n" for row in ROWS).encode(),
        "".join(";".join(row) + ";\n" for row in ROWS).encode(),
        unicodedata.normalize("NFD", joined(",")).encode(),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "TSV"])
def test_every_dialect_gives_the_same_manifest(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"m.{suffix}").write_bytes(content)
    read = read_manifest(tmp_path / f"m.{suffix}")
    assert tuple(getattr(read, name) for name in COLUMNS) == EXPECTED


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (joined(";").encode("cp1252"), "byte 0xe9 in line 2 is not UTF-8: save it as UTF-8"),
        (b"path;label\na\0.png;x\n", "null bytes: save it as UTF-8"),
        (b"file;label\na.png;x\n", "lacks column 'path', has file, label"),
        (b"", "lacks column 'path', has no columns"),
        (b"path,Label,label,LABEL\na.png,1,2,3\n", None),
        (b"path,Label,LABEL\na.png,1,2\n", "has 2 columns 'label': rename all but one"),
        (b"path,label\na.png\n", "line 2 has 1 values, expected 2"),
        (b"sep=;\npath;label\na.png;x;y\n", "line 3 has 3 values, expected 2"),
        (b'path,label\n"a.png,x\n', "not a readable .csv table"),
    ],
)
def test_what_cannot_be_read_for_certain_is_refused_by_name(
    tmp_path: Path, content: bytes, message: str | None
) -> None:
    (tmp_path / "m.csv").write_bytes(content)
    if message is None:  # the exact name goes before others
        assert read_table(tmp_path / "m.csv", ["path", "label"]).columns["label"] == ("2",)
        return
    with pytest.raises(UserError) as caught:
        read_table(tmp_path / "m.csv", ["path", "label"]).paths()
    assert message in str(caught.value)


@pytest.mark.parametrize("empty", ["", " \t", "\xa0", None])
def test_an_empty_text_is_no_value_in_parquet(tmp_path: Path, empty: str | None) -> None:
    columns = {
        "path": ["a", "b"],
        "label": ["x", "y"],
        "domain": ["d", "d"],
        "split": ["train"] * 2,
        "role": ["", None],
    }
    write_parquet(tmp_path / "m.parquet", {**columns, "label": ["x", empty]})
    assert read_manifest(tmp_path / "m.parquet").label == ("x", None)
    for name in ("path", "domain", "split"):
        write_parquet(tmp_path / "m.parquet", {**columns, name: [columns[name][0], empty]})
        with pytest.raises(UserError, match=f"column '{name}' has an empty value in row 1"):
            read_manifest(tmp_path / "m.parquet")


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    pa.parquet.write_table(pa.table(columns), path)


def test_labels_that_are_numbers_in_a_data_frame_read_as_they_were_written(tmp_path: Path) -> None:
    import pyarrow as pa

    categories = pa.array(["x", None, "y", "x"]).dictionary_encode()
    for labels, expected in (
        ([7, 8, None, 10], ("7", "8", None, "10")),
        ([7.0, math.nan, 2.5, None], ("7", None, "2.5", None)),
        ([b"x", b"y", b"", None], ("x", "y", None, None)),
        (categories, ("x", None, "y", "x")),
        ([None] * 4, (None,) * 4),
    ):
        write_parquet(tmp_path / "m.parquet", {"path": list("abcd"), "label": labels})
        read = read_table(tmp_path / "m.parquet", ["label"]).columns["label"]
        assert tuple(value or None for value in read) == expected
    write_parquet(tmp_path / "m.parquet", {"path": ["a"], "label": [["x", "y"]]})
    with pytest.raises(UserError, match="column 'label' holds a list, expected text or numbers"):
        read_table(tmp_path / "m.parquet", ["label"])


@pytest.mark.parametrize(
    ("on_disk", "in_table"),
    [
        (unicodedata.normalize("NFD", "Café/Käse.png"), unicodedata.normalize("NFC", "Café/Käse.png")),
        (unicodedata.normalize("NFC", "Café/Käse.png"), unicodedata.normalize("NFD", "Café/Käse.png")),
        (unicodedata.normalize("NFD", "Café") + "/ü.png", "Café\\ü.png"),
        ("a/b.png", "a\\b.png"),
        ("a/b.png", ".\\a\\b.png"),
        ("a\\b.png", "a\\b.png"),
        ("a/b.png", '" a/b.png "'),
        (" b.png", '" b.png"'),
    ],
)
def test_a_path_is_found_however_it_is_spelled(tmp_path: Path, on_disk: str, in_table: str) -> None:
    (tmp_path / on_disk).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / on_disk).touch()
    (tmp_path / "m.csv").write_text(f"path,label,domain,split,role\n{in_table},x,d,train,\n", encoding="utf-8")
    manifest = read_manifest(tmp_path / "m.csv")
    manifest.require_files()
    assert Path(manifest.files[0]).samefile(tmp_path / on_disk)


def test_a_path_that_means_no_file_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path\nC:\\photos\\é.png\n", encoding="utf-8")
    assert read_table(tmp_path / "m.csv", ["path"]).paths() == ("C:\\photos\\é.png",)
