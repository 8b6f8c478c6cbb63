"""Text files in the encodings that editors write, and file names in any bytes."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from edgeembed.errors import UserError
from edgeembed.texts import decode_text, is_utf8, printable, read_as_utf8, read_text

TEXT = "path,label\ncafé.jpg,tasse\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode("utf-16"),  # with a byte order mark, as PowerShell writes it
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
    ],
)
def test_every_encoding_gives_the_same_text(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.csv").write_bytes(content)
    assert read_text(tmp_path / "m.csv") == TEXT


def test_bytes_that_are_no_text_are_named_with_their_line() -> None:
    with pytest.raises(UserError, match=r"m\.csv: byte 0xe9 in line 2 is not UTF-8: save it as UTF-8"):
        decode_text(b"path\ncaf\xe9.jpg\n", source="m.csv")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: cannot be read \(No such file or directory\)"):
        read_text(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b.jpg", "a b.jpg"),
        ("café.jpg", "café.jpg"),
        ("caf\udce9.jpg", "caf\\xe9.jpg"),
        ("caf\udcc3\udca9.jpg", "café.jpg"),  # UTF-8 that the locale could not decode
        ("two\nlines", "two\\nlines"),
        ("\ud83d", "\\ud83d"),
    ],
)
def test_any_name_is_printable_in_one_line(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_names_that_are_not_utf8_stay_what_they_are() -> None:
    assert read_as_utf8("caf\udce9.jpg") == "caf\udce9.jpg"
    assert read_as_utf8("caf\udcc3\udca9.jpg") == "café.jpg"
    assert (is_utf8("café.jpg"), is_utf8("caf\udce9.jpg")) == (True, False)
