"""Joining, moving a share to val, and balancing by repeats."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeembed.data.importers import import_source
from edgeembed.data.manifest import (
    Manifest,
    ManifestRow,
    build_manifest,
    class_indices,
    class_sizes,
    read_manifest,
    write_manifest,
)
from edgeembed.data.sampling import join, move_to_val, prepare
from edgeembed.errors import UserError
from edgeembed.teacher.margin import class_margins

Run = Callable[..., Any]


def make(counts: dict[str, int], split: str = "train", domain: str = "d") -> list[ManifestRow]:
    return [
        ManifestRow(path=f"{label}/{split}{number}", label=label, domain=domain, split=split)
        for label, count in counts.items()
        for number in range(count)
    ]


def visits_by_class(table: Manifest) -> dict[tuple[str | None, str], list[int]]:
    """The visits of each row, in descending order, by label and split."""
    found: dict[tuple[str | None, str], list[int]] = {}
    visits = table.visits(np.arange(len(table))).tolist()
    for label, split, count in zip(table.label, table.split, visits, strict=True):
        found[label, split] = sorted([*found.get((label, split), []), count], reverse=True)
    return found


def test_classes_are_capped_left_out_and_repeated_and_no_row_is_lost(tmp_path: Path) -> None:
    rows = make({"big": 30, "small": 3, "tiny": 1}) + make({"tiny": 2}, "test")
    rows.append(ManifestRow(path="x", label=None, domain="d", split="train"))
    before = build_manifest(tmp_path, rows, source="x")
    table, balance = prepare([before], cap=10, minimum=2, resample_to=5)
    assert (table.path, table.label, table.split) == (before.path, before.label, before.split)
    assert visits_by_class(table) == {
        ("big", "train"): [1] * 10 + [0] * 20,
        ("small", "train"): [2, 2, 1],
        ("tiny", "train"): [0],
        ("tiny", "test"): [1, 1],
        (None, "train"): [1],
    }
    assert (balance.classes, balance.classes_dropped, balance.images_over_cap) == (2, 1, 20)
    assert (balance.images, balance.visits, balance.unlabelled, balance.moved_to_val) == (13, 15, 1, 0)


def test_the_draw_depends_on_the_seed_alone(tmp_path: Path) -> None:
    table = build_manifest(tmp_path, make({"big": 30, "small": 3}), source="x")
    drawn = [prepare([table], cap=10, minimum=1, resample_to=5, seed=seed)[0].repeat for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_preparing_again_replaces_repeats_except_zeros(tmp_path: Path) -> None:
    table = build_manifest(tmp_path, make({"big": 30, "small": 3}), source="x")
    once, _ = prepare([table], cap=10, minimum=1, resample_to=7)
    again, balance = prepare([once], cap=100, minimum=1, resample_to=0)
    assert visits_by_class(again) == {("big", "train"): [1] * 10 + [0] * 20, ("small", "train"): [1, 1, 1]}
    assert (balance.classes, balance.images, balance.visits, balance.images_over_cap) == (2, 13, 13, 0)
    assert {row for row, count in enumerate(once.repeat or ()) if not count} == {
        row for row, count in enumerate(again.repeat or ()) if not count
    }


def test_joined_manifests_keep_their_files_and_leaks_are_refused(tmp_path: Path) -> None:
    one = build_manifest(tmp_path / "one", make({"a": 4}), source="x")
    two = build_manifest(tmp_path / "two", make({"a": 4}), source="x")
    table, _ = prepare([one, two], cap=100, minimum=3, resample_to=0)
    assert sorted(table.files) == sorted(one.files + two.files)
    leak = build_manifest(
        tmp_path / "one", [ManifestRow(path="a/train0", label="a", domain="d", split="test")], source="x"
    )
    with pytest.raises(UserError, match="1 images are in split train and in split test, first"):
        prepare([one, leak], cap=100, minimum=3, resample_to=0)


def test_preparing_again_counts_all_images_of_a_class_for_the_minimum(tmp_path: Path) -> None:
    table = build_manifest(tmp_path, make({"big": 30, "small": 3}), source="x")
    once, _ = prepare([table], cap=4, minimum=5, resample_to=0)
    again, balance = prepare([once], cap=4, minimum=5, resample_to=0)
    assert again.repeat == once.repeat
    assert (balance.classes, balance.images) == (1, 4)


def test_joining_keeps_repeats_and_the_largest_of_equal_rows(tmp_path: Path) -> None:
    def table(**repeats: int) -> Manifest:
        rows = [
            ManifestRow(path=path, label="a", domain="d", split="train", repeat=repeat)
            for path, repeat in repeats.items()
        ]
        return build_manifest(tmp_path, rows, source="x")

    joined = join([table(a=3, b=0), table(b=2, c=1), table(a=1, d=0)])
    assert dict(zip(joined.path, joined.repeat or (), strict=True)) == {"a": 3, "b": 2, "c": 1, "d": 0}
    assert join([table(a=1), table(b=1)]).repeat is None


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_command_writes_repeats_and_counts_images_and_visits(edgeembed: Run, tmp_path: Path, suffix: str) -> None:
    write_manifest(tmp_path / "m.csv", build_manifest(tmp_path, make({"big": 30, "small": 3}), source="x"))
    out = tmp_path / f"p.{suffix}"
    result = edgeembed(
        *("data", "prepare", tmp_path / "m.csv", "--out", out, "--cap", 10, "--min", 1, "--resample-to", 5, "--json")
    )
    figures = json.loads(result.stdout)
    assert (figures["images"], figures["visits"], figures["images_over_cap"]) == (13, 15, 20)
    assert visits_by_class(read_manifest(out))["small", "train"] == [2, 2, 1]
    stats = json.loads(edgeembed("data", "stats", out, "--json").stdout)
    assert (stats["images"], stats["splits"]["train"], stats["visits"]) == (33, 33, 15)


SIZES = {"c1": 1, "c2": 2, "c3": 3, "c10": 10, "c11": 11}


@pytest.mark.parametrize(
    ("share", "moved"),
    [
        (0.0, [0, 0, 0, 0, 0]),
        (0.1, [0, 0, 0, 1, 1]),
        (0.2, [0, 0, 1, 2, 2]),
        (0.5, [0, 1, 2, 5, 6]),  # round(0.5) is 0, round(1.5) is 2, round(5.5) is 6
        (0.9, [0, 1, 2, 9, 10]),
        (0.999, [0, 1, 2, 9, 10]),
    ],
)
def test_a_share_of_each_class_is_moved_to_val_and_one_image_stays(
    tmp_path: Path, share: float, moved: list[int]
) -> None:
    rows = [*make(SIZES), *make({"c2": 2}, "test")]
    rows += [ManifestRow(path=f"u{number}", label=None, domain="d", split="train") for number in range(9)]
    before = build_manifest(tmp_path, rows, source="x")
    after, count = move_to_val(before, share)
    in_val = Counter(label for label, split in zip(after.label, after.split, strict=True) if split == "val")
    assert [in_val[name] for name in SIZES] == moved
    assert (count, in_val[None]) == (sum(moved), 0)
    assert (after.path, after.rows("test").tolist()) == (before.path, before.rows("test").tolist())
    assert move_to_val(before, share)[0] == after
    if 0 < share < 0.9:
        assert move_to_val(before, share, seed=1)[0] != after


def test_classes_of_one_name_in_two_domains_are_two(tmp_path: Path) -> None:
    rows = make({"a": 10}) + [
        ManifestRow(path=f"e{number}", label="a", domain="e", split="train") for number in range(10)
    ]
    after, _ = move_to_val(build_manifest(tmp_path, rows, source="x"), 0.2)
    assert Counter(after.domain[row] for row in after.rows("val")) == {"d": 2, "e": 2}


def test_rows_of_one_image_are_moved_together_and_no_class_loses_its_last(tmp_path: Path) -> None:
    """Image p is the only one of `single`, and stays; q has two labels, and moves with both; r is spelled twice."""
    labels = {"p": ["a", "single"], "q": ["a", "b"], "r": ["b", None], "./r": ["b"], "s": ["a"], "t": ["b"]}
    rows = [
        ManifestRow(path=path, label=label, domain="d", split="train")
        for path, names in labels.items()
        for label in names
    ]
    for seed in range(20):
        after, _ = move_to_val(build_manifest(tmp_path, rows, source="x"), 0.9, seed=seed)
        split_of: dict[str, set[str]] = {}
        for path, split in zip(after.path, after.split, strict=True):
            split_of.setdefault(path.removeprefix("./"), set()).add(split)
        assert all(len(splits) == 1 for splits in split_of.values())
        assert split_of["p"] == {"train"}
        in_train = {after.label[row] for row in after.rows("train")}
        assert {"a", "b", "single"} <= in_train
        assert split_of["q"] == split_of["s"] == {"val"}


def test_images_that_are_not_trained_on_are_not_drawn_for_val(tmp_path: Path) -> None:
    rows = [
        ManifestRow(path=f"{number}", label="a", domain="d", split="train", repeat=int(number < 10))
        for number in range(100)
    ]
    after, moved = move_to_val(build_manifest(tmp_path, rows, source="x"), 0.2)
    assert moved == 2
    assert all(row < 10 for row in after.rows("val"))


@pytest.mark.parametrize("share", ["1", "-0.1", "nan", "inf"])
def test_a_share_outside_0_to_1_is_refused(edgeembed: Run, tmp_path: Path, share: str) -> None:
    write_manifest(tmp_path / "m.csv", build_manifest(tmp_path, make({"a": 3}), source="x"))
    result = edgeembed("data", "prepare", tmp_path / "m.csv", "--out", tmp_path / "p.csv", f"--val-share={share}")
    assert result.code == 2
    assert f"--val-share is {float(share)}: choose a share from 0 up to, not including, 1" in result.stderr
    assert not (tmp_path / "p.csv").exists()
    with pytest.raises(UserError, match="--val-share"):
        move_to_val(read_manifest(tmp_path / "m.csv"), float(share))


def test_prepare_moves_to_val_before_it_balances(edgeembed: Run, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.csv", build_manifest(tmp_path, make({"a": 100, "b": 10}), source="x"))
    options = ["--val-share", 0.1, "--cap", 50, "--resample-to", 18, "--min", 1]
    result = edgeembed("data", "prepare", tmp_path / "m.csv", "--out", tmp_path / "p.csv", *options, "--json")
    figures = json.loads(result.stdout)
    assert (figures["moved_to_val"], figures["images_over_cap"], figures["images"]) == (11, 40, 59)
    found = visits_by_class(read_manifest(tmp_path / "p.csv"))
    assert found["a", "val"] == [1] * 10
    assert found["a", "train"] == [1] * 50 + [0] * 40
    assert found["b", "train"] == [2] * 9
    assert figures["evaluation"][0]["queries_without_match"] == 0


def test_import_moves_to_val_in_addition_to_official_splits(
    edgeembed: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split, count in (("train", 10), ("val", 2), ("test", 3)):
        for label in ("cat", "dog"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for number in range(count):
                (tmp_path / "set" / split / label / f"{number}.png").touch()
    out = tmp_path / "m.csv"
    with caplog.at_level(logging.INFO):
        result = edgeembed("data", "import", "folder", tmp_path / "set", "--out", out, "--val-share", 0.3, "--json")
    assert json.loads(result.stdout)["splits"] == {"train": 14, "val": 10, "test": 6}
    assert json.loads(result.stdout)["moved_to_val"] == 6
    assert "moved 6 training images to val, which held 4 images before" in caplog.text


def test_the_index_of_grocery_stays_whole_however_it_is_prepared(real_data: Path) -> None:
    grocery = import_source("grocery", real_data / "grocery")
    prepared, balance = prepare([grocery], cap=100, minimum=3, resample_to=100)
    query, index = prepared.evaluation("test")
    assert (len(query), len(index)) == (2485, 2640)
    assert (balance.images, balance.visits) == (2640, 8100)
    shared, moved = move_to_val(grocery, 0.1)
    query, index = shared.evaluation("test")
    assert (len(query), len(index)) == (2485, 2640)
    query, index = shared.evaluation("val")
    assert (len(query), len(index)) == (296 + moved, 2640 - moved)


def test_class_margins_go_by_the_true_sizes_of_balanced_classes(tmp_path: Path) -> None:
    """Classes of 3, 10 and 100 images, all balanced to 20 visits: margins .50, .30 and .05 by n ** -1/4."""
    table, _ = prepare(
        [build_manifest(tmp_path, make({"a": 3, "b": 10, "c": 100}), source="x")], cap=20, minimum=1, resample_to=20
    )
    names = table.class_names(table.training_rows())
    visits = table.visits(table.training_rows())
    assert np.bincount(class_indices(names, table, table.training_rows()), weights=visits).tolist() == [20, 20, 20]
    assert class_sizes(names, table) == [3, 10, 100]
    margin_K = class_margins(class_sizes(names, table), smallest=0.05, largest=0.5)
    assert margin_K.tolist() == pytest.approx([0.5, 0.30, 0.05], abs=2e-3)


def test_an_image_in_two_rows_of_its_class_counts_once_in_the_size_of_the_class() -> None:
    rows = [
        ManifestRow(path=path, label="a", domain="toys", split="train", role=role)
        for path, role in (("1.png", None), ("./1.png", "index"), ("2.png", None))
    ]
    assert class_sizes([("toys", "a"), ("toys", "b")], build_manifest(Path(), rows, source="test")) == [2, 0]
