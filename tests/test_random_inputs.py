"""The script that tries random inputs: the same seed gives the same samples, and each kind of fault is found."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import random_folders
import random_images
import random_tables
from PIL import Image
from random_folders import EITHER, FREE, IN, OUT, Folder
from random_samples import Ran

Rows = dict[str, tuple[str | None, str]]


def tree(folder: Path) -> dict[str, bytes]:
    """Every regular file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {os.fspath(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.skipif(os.name != "posix", reason="links, pipes and names that are not UTF-8")
@pytest.mark.parametrize("number", range(5))
def test_the_same_seed_gives_the_same_sample(tmp_path: Path, number: int) -> None:
    found = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        folder = random_folders.build(random.Random(number), tmp_path / name)
        table = random_tables.build(random.Random(number), tmp_path / name / "table", random_tables.MUTATIONS[number])
        table.write()
        found.append((tree(tmp_path / name), folder.expected, table.expected))
    assert found[0] == found[1]


def rightly_imported(folder: Folder) -> Rows:
    return {
        path: ((entry.labels or (None,))[0], (entry.splits or ("train",))[0])
        for path, entry in folder.expected.items()
        if entry.fate in (IN, EITHER)
    }


def said(rows: Rows, left_out: int) -> Ran:
    return Ran(code=0, out=json.dumps({"images": len(rows)}), err=f"set: {left_out} left out: hidden file")


def lose(folder: Folder, rows: Rows) -> None:
    del rows[next(path for path in rows if folder.expected[path].fate == IN)]


def mislabel(folder: Folder, rows: Rows) -> None:
    path = next(path for path in rows if folder.expected[path].labels is not None)
    rows[path] = ("another", rows[path][1])


def misplace(folder: Folder, rows: Rows) -> None:
    path = next(path for path in rows if folder.expected[path].fate == IN)
    rows[path] = (rows[path][0], "nowhere")


def take_hidden(folder: Folder, rows: Rows) -> None:
    rows[next(path for path, entry in folder.expected.items() if entry.fate == OUT)] = (None, "train")


def take_through_loop(folder: Folder, rows: Rows) -> None:
    del folder
    rows["loop/cat/0.png"] = ("loop/cat", "train")


@pytest.mark.skipif(os.name != "posix", reason="links, pipes and names that are not UTF-8")
@pytest.mark.parametrize("change", [None, lose, mislabel, misplace, take_hidden, take_through_loop])
def test_a_wrong_import_is_found(tmp_path: Path, change: Callable[[Folder, Rows], None] | None) -> None:
    folder = random_folders.build(random.Random(1), tmp_path)
    for oddity in (random_folders.hidden_file, random_folders.stray_files):
        oddity(folder)
    rows = rightly_imported(folder)
    num_out = sum(entry.fate == OUT for entry in folder.expected.values())
    num_free = sum(entry.fate == FREE for entry in folder.expected.values())
    if change is not None:
        change(folder, rows)
    faults = random_folders.import_faults(folder, said(rows, num_out + num_free), rows)
    assert bool(faults) == (change is not None)
    assert random_folders.import_faults(folder, said(rows, 0), rows), "what is left out must be counted"


@pytest.mark.parametrize("change", ["none", "black", "white", "turned", "negative", "darker"])
def test_wrong_pixels_are_found(change: str) -> None:
    image = random_images.picture(random.Random(0), 80, 50)
    variant = random_images.Variant(kind="", suffix="png", content=b"", expected=image)
    pixels = np.asarray(image.resize((random_images.SIDE, random_images.SIDE), Image.Resampling.BILINEAR))
    changed = {
        "none": pixels,
        "black": 0 * pixels,
        "white": 0 * pixels + 255,
        "turned": pixels[::-1],
        "negative": 255 - pixels,
        "darker": pixels // 2,
    }[change]
    assert bool(random_images.difference(changed, variant)) == (change != "none")


@pytest.mark.parametrize("text", ["", "error: nothing was said", "error: KeyError: 'a' (--debug shows where)"])
def test_a_failure_without_a_name_for_people_is_found(text: str) -> None:
    ran = Ran(code=1, out="", err=text)
    assert bool(ran.fault()) == (text != "error: nothing was said")
    assert replace(ran, code=139).fault()
    assert replace(ran, code=0, err="").fault() is None


def test_a_table_s_row_is_right_only_with_its_own_values() -> None:
    expected = {"path": "a.png", "label": "cat", "domain": random_tables.ANY, "split": "test", "role": None}
    row = {"path": "a.png", "label": "cat", "domain": "d", "split": "test", "role": None}
    assert random_tables.is_right(row, expected)
    for name, value in (("label", ""), ("label", "dog"), ("domain", ""), ("split", "train"), ("role", "query")):
        assert not random_tables.is_right({**row, name: value}, expected)
