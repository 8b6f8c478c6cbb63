"""Importers: class folders, tables, Grocery Store; joining and balancing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from edgeembed.data.importers import import_source
from edgeembed.data.manifest import ManifestRow, build_manifest
from edgeembed.data.sampling import prepare
from edgeembed.errors import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_split_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg", "train/cat/deep/2.PNG", "valid/cat/3.jpg", "test/dog/4.jpg")
    table = import_source("folder", tmp_path)
    found = dict(zip(table.path, zip(table.label, table.split, table.role, strict=True), strict=True))
    assert found == {
        "train/cat/1.jpg": ("cat", "train", None),
        "train/cat/deep/2.PNG": ("cat/deep", "train", None),
        "valid/cat/3.jpg": ("cat", "val", None),
        "test/dog/4.jpg": ("dog", "test", "both"),
    }


def test_few_classes_hold_out_images_of_each(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{label}/{number}.jpg" for label in "abc" for number in range(10)), "loose.jpg")
    table = import_source("folder", tmp_path)
    assert Counter(zip(table.label, table.split, strict=True))["a", "test"] == 2
    assert Counter(zip(table.label, table.split, strict=True))["b", "val"] == 1
    query, index = table.evaluation("test")
    assert len(query) == 6
    assert {table.split[row] for row in index} == {"train"}
    assert table.label[table.path.index("loose.jpg")] is None
    assert import_source("folder", tmp_path) == table


def test_many_classes_hold_out_whole_classes(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{label}/{number}.jpg" for label in range(60) for number in range(3)))
    table = import_source("folder", tmp_path)
    by_split = {split: {table.label[row] for row in table.rows(split)} for split in ("train", "val", "test")}
    assert {split: len(labels) for split, labels in by_split.items()} == {"train": 42, "val": 6, "test": 12}
    assert not by_split["train"] & by_split["test"]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("folder", "holds no images"),
        ("csv", "expected a .csv file"),
        ("grocery", "is not the Grocery"),
        ("imagenet", "unknown source"),
    ],
)
def test_a_wrong_root_or_source_is_named(tmp_path: Path, source: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        import_source(source, tmp_path)


def test_a_table_is_read_with_paths_relative_to_it(tmp_path: Path) -> None:
    touch(tmp_path, "pictures/1.jpg")
    (tmp_path / "mine.csv").write_text("path,label,domain,split,role\npictures/1.jpg,007,toys,train,\n")
    table = import_source("csv", tmp_path / "mine.csv")
    assert (table.label, table.files) == (("007",), (str(tmp_path / "pictures/1.jpg"),))


def test_grocery_has_its_official_splits(real_data: Path) -> None:
    table = import_source("grocery", real_data / "grocery")
    assert {split: len(table.rows(split)) for split in ("train", "val", "test")} == {
        "train": 2640,
        "val": 296,
        "test": 2485,
    }
    query, index = table.evaluation("test")
    assert (len(query), len(index)) == (2485, 2640)
    assert len(table.class_names(table.rows("train"))) == 81
    table.require_files()


def make(counts: dict[str, int], split: str = "train") -> list[ManifestRow]:
    return [
        ManifestRow(path=f"{label}/{split}{number}", label=label, domain="d", split=split)
        for label, count in counts.items()
        for number in range(count)
    ]


def test_classes_are_capped_dropped_and_repeated(tmp_path: Path) -> None:
    rows = make({"big": 30, "small": 3, "tiny": 1}) + make({"tiny": 2}, "test")
    table, balance = prepare([build_manifest(tmp_path, rows, source="x")], cap=10, minimum=2, resample_to=5)
    counts = Counter(zip(table.label, table.split, strict=True))
    assert counts == {("big", "train"): 10, ("small", "train"): 5, ("tiny", "test"): 2}
    assert (balance.classes, balance.classes_dropped, balance.images_over_cap, balance.images_repeated) == (2, 1, 20, 2)


def test_joined_manifests_keep_their_files_and_leaks_are_refused(tmp_path: Path) -> None:
    one = build_manifest(tmp_path / "one", make({"a": 4}), source="x")
    two = build_manifest(tmp_path / "two", make({"a": 4}), source="x")
    table, _ = prepare([one, two], cap=100, minimum=3, resample_to=0)
    assert sorted(table.files) == sorted(one.files + two.files)
    leak = build_manifest(
        tmp_path / "one", [ManifestRow(path="a/train0", label="a", domain="d", split="test")], source="x"
    )
    with pytest.raises(UserError, match="1 images stand in train and in test, first"):
        prepare([one, leak], cap=100, minimum=3, resample_to=0)
