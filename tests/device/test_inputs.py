"""Images named on the command line: folders by the rules of `data import`, tables of any dialect, any file name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeembed.cli.inputs import gather_images
from edgeembed.device.embeddings import read_embeddings
from edgeembed.errors import UserError
from tests.device.conftest import pattern

Run = Callable[..., Any]


def test_a_folder_is_listed_as_by_import_and_what_is_left_out_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("store/a.jfif", "set/.net/b.tga", "set/c.HEIC", "set/.git/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "set" / "linked").symlink_to("../store")
    (tmp_path / "set" / "linked" / "back").symlink_to("..")
    found = gather_images([tmp_path / "set"])
    assert [os.path.relpath(file, tmp_path / "set") for file in found] == [".net/b.tga", "linked/a.jfif"]
    (line,) = caplog.messages
    assert "3 left out" in line
    for told in (".heic", "first c.HEIC", "first .git", "link back to a folder above it: 1 (first linked/back)"):
        assert told in line


def test_a_folder_without_images_is_refused_by_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.heic").touch()
    with pytest.raises(UserError, match=r"holds no images: 1 left out: \.heic"):
        gather_images([tmp_path])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "Path;label\r\na b.png;x\r\n"),
        ("m.TSV", "\ufefflabel\tpath\nx\ta b.png\n\t\n"),
        ("m.txt", "path\na b.png\n"),
    ],
)
def test_a_table_needs_only_a_column_of_paths(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "a b.png").touch()
    assert gather_images([tmp_path / name]) == [str(tmp_path / "a b.png")]


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"\x83\x65\x83\x58.png", b"\xff\xfe/1.png"])
def test_a_name_that_is_not_utf8_is_embedded_and_found(
    edgeembed: Run, bundle: Path, tmp_path: Path, name: bytes
) -> None:
    file = os.fsencode(tmp_path) + b"/set/" + name
    os.makedirs(os.path.dirname(file))
    pattern(1).save(os.fsdecode(file))
    index = tmp_path / "e.safetensors"
    assert edgeembed("embed", tmp_path / "set", "--model", bundle, "--out", index).code == 0
    assert [os.fsencode(path) for path in read_embeddings(index).paths] == [file]
    shown = name.decode("utf-8", "backslashreplace")
    search = ("search", os.fsdecode(file), "--index", index, "--model", bundle)
    found = edgeembed(*search, "--sheet", tmp_path / "sheet.png")
    assert found.code == 0
    assert found.stdout.splitlines()[-1].endswith(shown)
    value = json.loads(edgeembed(*search, "--json").stdout)
    assert os.fsencode(value["queries"][0]["results"][0]["path"]) == file  # JSON has escapes of its own


def test_listing_and_text_tables_need_neither_torch_nor_pyarrow(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "m.csv").write_text("path\na.png\n")
    program = """
import sys
from pathlib import Path
from edgeembed.cli.inputs import gather_images
folder = Path(sys.argv[1])
assert gather_images([folder / "m.csv"]) == gather_images([folder])
print(sorted({"torch", "pyarrow"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
