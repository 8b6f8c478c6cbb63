"""The id of a list of image files changes when one of the images changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeembed.data.image_versions import image_key_of, images_id


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(bytes([number]) * 10)
        os.utime(tmp_path / f"{number}.jpg", ns=(10**18, 10**18 + number))
    return [str(tmp_path / f"{number}.jpg") for number in range(3)]


def rewrite(path: Path) -> None:
    """Other bytes of the same number, under the same time."""
    facts = path.stat()
    path.write_bytes(b"x" * facts.st_size)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "seen_by"),
    [
        (lambda path: path.write_bytes(b"longer than before"), {"stat", "content"}),
        (lambda path: os.utime(path, ns=(0, path.stat().st_mtime_ns + 1)), {"stat"}),
        (rewrite, {"content"}),
        (lambda path: path.unlink(), {"stat", "content"}),
        (lambda path: os.replace(path.with_name("2.jpg"), path), {"stat", "content"}),
        (lambda path: path.chmod(0o444), set()),
    ],
)
def test_a_change_is_seen(files: list[str], change: Callable[[Path], object], seen_by: set[str]) -> None:
    before = {"stat": images_id(files, by="stat"), "content": images_id(files, by="content")}
    assert [image_key_of(name) for name in before.values()] == ["stat", "content"]
    change(Path(files[1]))
    after = {"stat": images_id(files, by="stat"), "content": images_id(files, by="content")}
    assert {kind for kind in before if before[kind] != after[kind]} == seen_by


def test_order_counts_and_place_does_not(files: list[str], tmp_path: Path) -> None:
    before = images_id(files, by="stat")
    assert images_id(files[::-1], by="stat") != before
    (tmp_path / "moved").mkdir()
    for file in files:
        os.replace(file, tmp_path / "moved" / os.path.basename(file))
    moved = [str(tmp_path / "moved" / os.path.basename(file)) for file in files]
    assert images_id(moved, by="stat") == before
    (tmp_path / "linked").symlink_to("moved")
    assert images_id([file.replace("moved", "linked") for file in moved], by="stat") == before


def test_paths_of_no_readable_file_count_as_missing(tmp_path: Path) -> None:
    for by in ("stat", "content"):
        absent, null = (images_id([str(tmp_path / name)], by=by) for name in ("gone", "a\0b"))  # type: ignore[arg-type]
        assert absent == null
    assert images_id([str(tmp_path)], by="content") == images_id([str(tmp_path / "gone")], by="content")
