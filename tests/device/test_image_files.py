"""Listing folders: which files are images, which links are followed, and that everything else is counted."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from edgeembed.device.image_files import (
    BROKEN,
    HIDDEN,
    LOOP,
    NO_SUFFIX,
    PROGRAM,
    REPEATED,
    SPECIAL,
    find_images,
    image_suffixes,
    list_images,
)
from edgeembed.errors import UserError
from edgeembed.texts import is_utf8, printable


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def listed(root: Path) -> list[str]:
    return [file.relative_to(root).as_posix() for file in list_images(root).files]


def test_folders_are_searched_without_droppings(tmp_path: Path) -> None:
    touch(tmp_path, "b/x.JPG", "a/y.png", "__MACOSX/z.jpg", "a/._y.png", "a/notes.txt")
    assert [path.name for path in find_images(tmp_path)] == ["y.png", "x.JPG"]


def test_every_suffix_that_pillow_opens_is_an_image_and_unsafe_ones_are_not() -> None:
    assert {".jpg", ".jpe", ".jfif", ".webp", ".tiff", ".jp2", ".ppm", ".tga", ".ico", ".psd"} <= image_suffixes()
    assert not {".eps", ".ps", ".pdf", ".wmf", ".emf", ".mpg", ".h5", ".grib", ".heic", ".txt"} & image_suffixes()


def test_what_is_left_out_is_counted_by_reason_with_the_first_of_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "cat/1.png", "cat/b.HEIC", "cat/a.heic", "dog/x.svg", "dog/7f3a", "dog/.x.png", "README.md")
    touch(tmp_path, ".git/x.png", "cat/.ipynb_checkpoints/1-checkpoint.png", "__MACOSX/cat/._1.png")
    listing = list_images(tmp_path)
    assert [file.name for file in listing.files] == ["1.png"]
    assert listing.left_out.counts == {
        ".heic, no image format that is read here": 2,
        ".svg, no image format that is read here": 1,
        ".md, no image format that is read here": 1,
        NO_SUFFIX: 1,
        HIDDEN: 1,
        PROGRAM: 3,
    }
    with caplog.at_level(logging.WARNING):
        listing.log_left_out()
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path}: 9 left out: {PROGRAM}: 3 (first .git); .heic")
    assert "2 (first cat/a.heic)" in line


def test_thousands_of_suffixes_are_still_one_short_line(tmp_path: Path) -> None:
    touch(tmp_path, *(f"scan.{number:04}" for number in range(200)))
    line = str(list_images(tmp_path).left_out)
    assert line.startswith("200 left out: .0000, no image")
    assert line.endswith("180 more reasons: 180")


@pytest.mark.parametrize("name", [".net", ".5mm", ".hidden class"])
def test_a_folder_that_begins_with_a_dot_may_hold_images(tmp_path: Path, name: str) -> None:
    touch(tmp_path, f"{name}/1.png", "java/1.png")
    assert listed(tmp_path) == [f"{name}/1.png", "java/1.png"]


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "store/cat/1.png", "store/cat/deep/2.png", "store/3.png", "set/bird/4.png")
    root = tmp_path / "set"
    (root / "cat").symlink_to("../store/cat")
    (root / "kitten").symlink_to(tmp_path / "store" / "cat")
    (root / "bird" / "linked.png").symlink_to("../../store/3.png")
    (tmp_path / "link to set").symlink_to("set")
    expected = ["bird/4.png", "bird/linked.png", "cat/1.png", "cat/deep/2.png", "kitten/1.png", "kitten/deep/2.png"]
    assert listed(root) == listed(tmp_path / "link to set") == expected


def test_links_that_lead_back_end_the_walk_and_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "store/cat/1.png", "set/bird/2.png")
    root = tmp_path / "set"
    (root / "bird" / "up").symlink_to("..")
    (root / "bird" / "far up").symlink_to("../..")
    (root / "birds").symlink_to("bird")
    (root / "cat").symlink_to("../store/cat")
    (tmp_path / "store" / "cat" / "set").symlink_to(root)
    (root / "self").symlink_to("self")
    (root / "gone.png").symlink_to("nowhere.png")
    listing = list_images(root)
    assert [file.relative_to(root).as_posix() for file in listing.files] == ["bird/2.png", "cat/1.png"]
    assert listing.left_out.counts == {LOOP: 3, REPEATED: 1, BROKEN: 2}
    assert listing.left_out.first[LOOP] == "bird/far up"


def test_folders_that_all_link_to_each_other_are_listed_in_a_moment(tmp_path: Path) -> None:
    """Their paths without a repetition alone would be more than a million."""
    names = "abcdefghij"
    for name in names:
        touch(tmp_path, f"store/{name}/1.png")
        for other in names:
            (tmp_path / "store" / name / f"to {other}").symlink_to(f"../{other}")
    assert listed(tmp_path / "store") == [f"{name}/1.png" for name in names]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").symlink_to("../store/a")
    assert len(listed(tmp_path / "set")) == len(names)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_regular_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    touch(tmp_path, "looks like a file.jpg/1.png")
    listing = list_images(tmp_path)
    assert (len(listing.files), listing.left_out.counts) == (1, {SPECIAL: 1})


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(UserError, match=r"a\.png: is a file, expected a folder"):
        list_images(tmp_path / "a.png")
    with pytest.raises(UserError, match="none: no such folder"):
        list_images(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"caf\xe9.png".decode("utf-8", "surrogateescape"), r"caf\xe9.png"),
        (b"\x83\x65\x83\x58\x83\x67.jpg".decode("utf-8", "surrogateescape"), r"\x83e\x83X\x83g.jpg"),
        ("half a pair \ud83d.png", r"half a pair \ud83d.png"),
    ],
)
def test_names_that_are_not_utf8_can_be_printed(name: str, shown: str) -> None:
    assert not is_utf8(name)
    assert printable(name) == shown
    assert is_utf8("café\n.png")
    assert printable("café\n.png") == r"café\n.png"
