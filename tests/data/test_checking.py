"""Verification of manifests: unreadable images, the same image in two splits, copies within one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeembed.data.checking import find_copies, find_unreadable
from edgeembed.data.manifest import ManifestRow, build_manifest, read_manifest, write_manifest
from edgeembed.data.sampling import prepare
from edgeembed.errors import UserError

Run = Callable[..., Any]


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """a.png, b.png and c.png of different pixels; b copy.png with the bytes of b.png."""
    for shade, name in enumerate("abc"):
        picture(tmp_path / f"{name}.png", shade)
    shutil.copy(tmp_path / "b.png", tmp_path / "b copy.png")
    return tmp_path


def manifest(root: Path, *rows: tuple[str, str, str]) -> Path:
    table = [ManifestRow(path=path, label=label, domain="d", split=split) for path, label, split in rows]
    write_manifest(root / "m.parquet", build_manifest(root, table, source="test"))
    return root / "m.parquet"


@pytest.mark.parametrize(("one", "other"), [("train", "test"), ("train", "val"), ("val", "test")])
@pytest.mark.parametrize("copy", ["b.png", "b copy.png"])
def test_the_same_bytes_in_two_splits_fail_and_name_both(
    edgeembed: Run, root: Path, one: str, other: str, copy: str
) -> None:
    table = manifest(root, ("a.png", "x", one), ("b.png", "y", one), (copy, "y", other), ("c.png", "x", other))
    result = edgeembed("data", "check", table, "--json")
    assert result.code == 1
    (leak,) = json.loads(result.stdout)["leaks"]
    assert f"b.png ({one})" in leak
    assert f"{copy} ({other})" in leak
    assert "1 images are in two splits" in result.stderr


def test_copies_within_a_split_are_counted(edgeembed: Run, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = manifest(root, ("a.png", "x", "train"), ("b.png", "y", "train"), ("b copy.png", "z", "train"))
    result = edgeembed("data", "check", table, "--json")
    value = json.loads(result.stdout)
    assert (result.code, value["leaks"], value["copies"], value["other_labels"]) == (0, [], 1, 1)
    assert "1 images are copies of others in their split, first b.png = b copy.png" in caplog.text
    assert "b copy.png is 'z' in domain '" in caplog.text


def test_an_image_with_two_rows_is_no_copy_of_itself(root: Path) -> None:
    table = read_manifest(manifest(root, ("a.png", "x", "train"), ("a.png", "y", "train"), ("c.png", "y", "test")))
    copies = find_copies(table)
    assert (copies.leaks, copies.num_copies, copies.num_other_labels) == ([], 0, 1)


def test_files_that_are_broken_in_the_same_way_are_no_leak(root: Path) -> None:
    for name in ("d.png", "e.png"):
        (root / name).write_bytes(b"")
    table = read_manifest(manifest(root, ("a.png", "x", "train"), ("d.png", "x", "train"), ("e.png", "x", "test")))
    unreadable = find_unreadable(table, workers=1)
    assert [Path(file).name for file in unreadable] == ["d.png", "e.png"]
    assert find_copies(table, unreadable=unreadable).leaks == []


def test_fix_writes_a_manifest_without_what_cannot_be_read(
    edgeembed: Run, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "broken.png").write_bytes((root / "a.png").read_bytes()[:40])
    rows = [(f"{name}.png", "x", "train") for name in ("a", "gone", "broken", "c", "gone too")]
    table = manifest(root, *rows)
    failed = edgeembed("data", "check", table)
    assert failed.code == 1
    assert f"3 of 5 images cannot be read (paths are relative to {root}, the root that the table" in failed.stderr
    with caplog.at_level("INFO"):
        assert edgeembed("data", "check", table, "--fix", root / "fixed.csv").code == 0
    assert "2 of 5 rows; left out: 2 missing, 1 unreadable" in caplog.text
    assert read_manifest(root / "fixed.csv").path == ("a.png", "c.png")
    checked = edgeembed("data", "check", root / "fixed.csv")
    assert checked.code == 0
    assert "all 2 images can be read, and none is in two splits" in checked.stdout


def test_fix_writes_nothing_where_nothing_is_left(edgeembed: Run, root: Path) -> None:
    result = edgeembed("data", "check", manifest(root, ("gone.png", "x", "train")), "--fix", root / "fixed.csv")
    assert result.code == 1
    assert "none of 1 images can be read" in result.stderr
    assert f"(paths are relative to {root}, the root that the table records)" in " ".join(result.stderr.split())
    assert not (root / "fixed.csv").exists()


def test_joining_takes_rows_that_stand_there_twice_once_and_refuses_leaks_in_any_spelling(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = read_manifest(manifest(root, ("a.png", "x", "train"), ("b.png", "x", "train")))
    joined, _ = prepare([table, table], cap=10, minimum=1, resample_to=0)
    assert sorted(joined.path) == ["a.png", "b.png"]
    assert "2 duplicate rows were merged" in caplog.text
    picture(root / "e\u0301.png", 9)
    one = build_manifest(root, [ManifestRow(path="e\u0301.png", label="x", domain="d", split="val")], source="x")
    two = build_manifest(root, [ManifestRow(path="\u00e9.png", label="x", domain="d", split="test")], source="x")
    with pytest.raises(UserError, match="1 images are in split val and in split test"):
        prepare([one, two], cap=10, minimum=1, resample_to=0)


def test_preparing_everything_away_is_an_error(edgeembed: Run, root: Path) -> None:
    table = manifest(root, ("a.png", "x", "train"), ("b.png", "y", "train"), ("c.png", "y", "test"))
    result = edgeembed("data", "prepare", table, "--out", root / "p.parquet", "--min", 2)
    assert result.code == 2
    assert "all 2 classes have fewer than 2 training images: choose a lower minimum" in result.stderr
    assert not (root / "p.parquet").exists()
