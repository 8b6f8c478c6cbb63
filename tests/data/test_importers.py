"""Importers: class folders, tables, Grocery Store."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeembed.data.importers import TableOptions, import_source
from edgeembed.data.manifest import ManifestRow, build_manifest, read_manifest, write_manifest
from edgeembed.data.summary import repeated_paths
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
    ("source", "message"),
    [
        ("folder", "holds no images"),
        ("csv", "expected a table"),
        ("grocery", "is not the Grocery"),
        ("imagenet", "unknown source"),
    ],
)
def test_a_wrong_root_or_source_is_named(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
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


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["Train", "VAL", "Test"], {"train": 4, "val": 4, "test": 4}),
        (["training", "validation", "testing"], {"train": 4, "val": 4, "test": 4}),
        (["TRAINING", "dev", "test "], {"train": 4, "val": 4, "test": 4}),
        (["train", "valid"], {"train": 4, "val": 4, "test": 0}),
        (["data/Train", "data/Test"], {"train": 4, "val": 0, "test": 4}),
        (["data/train"], {"train": 4, "val": 0, "test": 0}),
    ],
)
@pytest.mark.parametrize(
    "stray", [[], ["preview.png"], ["README.md", "._0.png", "notes"], ["thumbs/1.png", "labels.csv"]]
)
def test_split_folders_are_recognised_by_their_usual_names_beside_other_files(
    tmp_path: Path, names: list[str], splits: dict[str, int], stray: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, *(f"{name}/{label}/{number}.png" for name in names for label in ("cat", "dog") for number in "01"))
    touch(tmp_path, *stray)
    table = import_source("folder", tmp_path)
    assert {split: len(table.rows(split)) for split in splits} == splits
    assert set(table.label) == {"cat", "dog"}
    lines = [message for message in caplog.messages if "left out" in message]
    assert len(lines) == bool(stray)
    assert all(f"first {name})" in lines[0] for name in stray)


def test_class_folders_may_hold_the_split_folders(tmp_path: Path) -> None:
    touch(
        tmp_path, *(f"{label}/{split}/{n}.png" for label in ("cat", "dog") for split in ("train", "Test") for n in "01")
    )
    table = import_source("folder", tmp_path)
    assert Counter(zip(table.label, table.split, strict=True)) == {
        (label, split): 2 for label in ("cat", "dog") for split in ("train", "test")
    }


@pytest.mark.parametrize("label", ["train", "Training"])
def test_a_class_may_be_called_train(tmp_path: Path, label: str, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, *(f"{name}/{number}.png" for name in (label, "car", "bus") for number in range(5)))
    table = import_source("folder", tmp_path)
    assert set(table.label) == {label, "car", "bus"}
    assert f"{label}/ is read as a class, like bus/, car/ beside it" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ["test/1.png", "cat/1.png", "dog/1.png"],
        ["val/1.png", "cat/old/1.png"],
        ["train/cat/1.png", "unused/cat/1.png"],
    ],
)
def test_folders_that_could_be_splits_or_classes_are_refused_by_name(tmp_path: Path, names: list[str]) -> None:
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=rf"{names[0].split('/')[0]}/ has the name of a split, but .* beside it"):
        import_source("folder", tmp_path)


@pytest.mark.parametrize("name", ["Café", "Ångström", "한국", "Crème brûlée"])
def test_one_class_in_two_unicode_forms_is_one(tmp_path: Path, name: str) -> None:
    touch(
        tmp_path,
        f"train/{unicodedata.normalize('NFD', name)}/1.png",
        f"test/{unicodedata.normalize('NFC', name)}/2.png",
    )
    touch(tmp_path, "train/b/1.png", "test/b/2.png")
    table = import_source("folder", tmp_path)
    assert set(table.label) == {name, "b"}
    table.require_files()
    for suffix in ("csv", "parquet"):
        write_manifest(tmp_path / f"m.{suffix}", table)
        assert read_manifest(tmp_path / f"m.{suffix}").fingerprint == table.fingerprint


@pytest.mark.parametrize("name", [b"cat/caf\xe9.png", b"\x83\x65/1.png", b"cat/\xff\xfe.png"])
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_name_that_is_not_utf8_is_counted_and_named(
    tmp_path: Path, name: bytes, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "cat/1.png", "dog/1.png")
    file = os.fsencode(tmp_path) + b"/" + name
    os.makedirs(os.path.dirname(file), exist_ok=True)
    with open(file, "wb"):
        table = import_source("folder", tmp_path)
    write_manifest(tmp_path / f"m.{suffix}", table)
    assert read_manifest(tmp_path / f"m.{suffix}").path == ("cat/1.png", "dog/1.png")
    assert f"1 (first {name.decode('utf-8', 'backslashreplace')})" in caplog.text


def test_folders_of_which_nothing_can_be_imported_are_refused_by_what_they_hold(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.heic", "cat/2.heic", "._x.png")
    with pytest.raises(
        UserError, match=r"holds no images: 3 left out: \.heic, .*: 2 \(first cat/1\.heic\); hidden file"
    ):
        import_source("folder", tmp_path)


def test_whole_classes_of_one_image_are_not_held_out(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{label}/{n}.jpg" for label in range(60) for n in range(1 if label < 30 else 3)))
    table = import_source("folder", tmp_path)
    images_of = Counter(table.label)
    assert all(images_of[table.label[row]] == 3 for split in ("val", "test") for row in table.rows(split))
    assert len(table.rows("test")) == 18


def table_of(root: Path, text: str, *files: str) -> Path:
    touch(root, *files)
    (root / "m.csv").write_text(text, encoding="utf-8")
    return root / "m.csv"


def test_a_table_needs_only_paths(tmp_path: Path) -> None:
    table = import_source("csv", table_of(tmp_path, "path\na.png\nb.png\n", "a.png", "b.png"))
    assert (table.label, table.domain) == ((None, None), (tmp_path.name,) * 2)
    assert (table.split, table.role) == (("train", "train"), (None, None))


def test_a_table_with_labels_and_no_splits_has_them_drawn(tmp_path: Path) -> None:
    files = [f"{label}{n}.png" for label in "xy" for n in range(10)]
    text = "path;label\n" + "".join(f"{file};{file[0]}\n" for file in files)
    table = import_source("table", table_of(tmp_path, text, *files))
    assert Counter(zip(table.label, table.split, strict=True))["x", "test"] == 2
    query, index = table.evaluation("test")
    assert (len(query), {table.split[row] for row in index}) == (4, {"train"})


def test_columns_of_a_table_may_have_other_names_and_usual_values(tmp_path: Path) -> None:
    text = "file,class,kind,fold,use\na.png,7,toys,Training,INDEX\nb.png,7,,Validation,\nc.png,,toys,,\n"
    path = table_of(tmp_path, text, "pictures/a.png", "pictures/b.png", "pictures/c.png")
    names = {"path": "file", "label": "Class", "domain": "kind", "split": "fold", "role": "use"}
    table = import_source("csv", path, TableOptions(columns=names, images=tmp_path / "pictures"))
    assert table.label == ("7", "7", None)
    assert table.domain == ("toys", "pictures", "toys")
    assert (table.split, table.role) == (("train", "val", "train"), ("index", None, None))
    table.require_files()
    only_test = import_source(
        "csv", path, TableOptions(columns={"path": "file"}, images=tmp_path / "pictures", split="test")
    )
    assert set(only_test.split) == {"test"}


def test_missing_images_of_a_table_are_refused_or_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = table_of(tmp_path, "path,label\na.png,x\ngone.png,x\nb.png,y\n", "a.png", "b.png")
    with pytest.raises(
        UserError, match=rf"1 of 3 images do not exist, first gone\.png \(paths are relative to {tmp_path}"
    ):
        import_source("csv", path)
    assert import_source("csv", path, TableOptions(skip_missing=True)).path == ("a.png", "b.png")
    assert "1 left out: image that does not exist: 1 (first gone.png)" in caplog.text
    with pytest.raises(UserError, match="2 of 2 images do not exist"):
        import_source("csv", table_of(tmp_path, "path\nx.png\ny.png\n"), TableOptions(skip_missing=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"label": "klass"}}, "lacks column 'klass', has path, label"),
        ({"split": "training"}, "unknown split 'training': did you mean 'train'"),
        ({"images": Path("nowhere")}, "--images nowhere: no such folder"),
    ],
)
def test_wrong_options_of_a_table_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        import_source("csv", table_of(tmp_path, "path,label\na.png,x\n", "a.png"), TableOptions(**options))
    with pytest.raises(UserError, match="are for tables"):
        import_source("folder", tmp_path, TableOptions(**options))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.png", "2.png"], "none of 2 images has a label"),
        ([f"{label}/1.png" for label in "abc"], "3 of 3 classes have a single image, first 'a'"),
        ([f"cat/{n}.png" for n in range(5)], "there is only one class, 'cat'"),
        ([f"train/{name}.png" for name in ("a/1", "a/2", "b/1")], "no labelled image is in val or test"),
    ],
)
def test_the_limitations_of_an_imported_set_are_logged(
    edgeembed: Callable[..., Any], tmp_path: Path, names: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "set", *names)
    assert edgeembed("data", "import", "folder", tmp_path / "set", "--out", tmp_path / "m.csv").code == 0
    assert message in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fodler", ".", "--out", "x.csv"], "unknown source 'fodler': did you mean 'folder'"),
        (["folder", ".", "--out", "x.txt"], "unknown suffix '.txt'"),
        (["folder", ".", "--out", "x"], "unknown suffix ''"),
        (["folder", "nowhere", "--out", "x.csv"], "nowhere: no such folder"),
        (["csv", "nowhere.csv", "--out", "x.csv"], "nowhere.csv: no such file"),
    ],
)
def test_a_wrong_import_is_one_line_and_writes_nothing(
    edgeembed: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    touch(tmp_path, "cat/1.png", "dog/1.png")
    monkeypatch.chdir(tmp_path)
    result = edgeembed("data", "import", *arguments)
    assert result.code == 2
    assert message in result.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat", "dog"]


def test_an_image_named_in_two_spellings_is_reported(tmp_path: Path) -> None:
    paths = ("a.png", "./a.png", "x/../a.png", "b.png")
    rows = [ManifestRow(path=path, label="a", domain="d", split="train") for path in paths]
    reported = repeated_paths(build_manifest(tmp_path, rows, source="here"))
    assert reported == f"rows that name an image again: 2 (first {tmp_path / 'a.png'})"
