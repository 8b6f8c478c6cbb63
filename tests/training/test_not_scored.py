"""Data that cannot be scored, and batches of one image, end no run: teacher and student are written, and say why."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from tests.conftest import TINY, TINY_STUDENT, Outcome, as_options

Run = Callable[..., Outcome]

SHORT = ["train.epochs=1", "train.max_steps=1", "train.batch_size=4", "train.checkpoint_every_steps=0"]
TRAIN = [("a", "train"), ("a", "train"), ("b", "train"), ("b", "train")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(10):
        noise_HWC = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise_HWC).resize((48, 48)).save(folder / f"{number}.png")
    return folder


def write_table(photos: Path, name: str, rows: Iterable[tuple[str, str]]) -> Path:
    path = photos / f"{name}.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "domain", "split", "role"])
        table.writerows([f"{number}.png", label, "d", split, ""] for number, (label, split) in enumerate(rows))
    return path


@pytest.mark.parametrize(
    ("name", "rows", "reason"),
    [
        ("one_photo", [*((str(at), "train") for at in range(6)), ("x", "val"), ("y", "val")], "none of its 2 queries"),
        ("no_val", TRAIN, "the manifest has no val split"),
        ("unlabelled", [*TRAIN, ("", "val"), ("", "val")], "none of the 2 images of the val split has a label"),
        ("one_image", [*TRAIN, ("c", "val")], "none of its 1 queries"),
    ],
)
def test_a_teacher_is_trained_where_nothing_can_be_scored(
    edgeembed: Run, photos: Path, tmp_path: Path, name: str, rows: list[tuple[str, str]], reason: str
) -> None:
    data = write_table(photos, name, rows)
    options = as_options([*TINY, *SHORT])
    outcome = edgeembed("teacher-train", "--data", data, "--recipe", "quickstart", "--out", tmp_path / "run", *options)
    assert outcome.code == 0, outcome.stderr
    result = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert result["scores"] is None
    assert reason in result["not_scored"]
    assert (tmp_path / "run" / "model.json").is_file()
    checked = edgeembed("data", "check", data, "--json")
    assert checked.code == 0
    assert reason in json.loads(checked.stdout)["evaluation"][0]["not_scored"]


def test_what_can_be_scored_is_scored_and_the_rest_is_counted(edgeembed: Run, photos: Path, tmp_path: Path) -> None:
    data = write_table(photos, "partly", [*TRAIN, ("a", "val"), ("b", "val"), ("new", "val"), ("", "val")])
    options = as_options([*TINY, *SHORT])
    outcome = edgeembed("teacher-train", "--data", data, "--recipe", "quickstart", "--out", tmp_path / "run", *options)
    assert outcome.code == 0, outcome.stderr
    result = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert (result["queries"], result["queries_without_match"], result["unlabelled"]) == (3, 1, 1)
    assert result["not_scored"] is None
    # Of 5 index images (4 to train on and the one of class new, which train does not hold) 2 are relevant: the average
    # precision of the 10 pairs of ranks that they can have.
    chance = sum((1 / i + 2 / j) / 2 for i, j in itertools.combinations(range(1, 6), 2)) / 10
    assert result["scores"]["chance"]["map"] == pytest.approx(chance)
    assert 0 < result["scores"]["map"] <= 1
    assert result["spread"]["images"] == 7


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.batch_size=1"],
        ["train.batch_size=1", "train.accumulate_steps=3", "train.max_steps=2"],
        ["train.batch_size=1", "neck.batch_norm=true"],
    ],
)
def test_a_teacher_with_batch_norm_takes_batches_of_one(
    edgeembed: Run, photos: Path, tmp_path: Path, overrides: list[str]
) -> None:
    data = write_table(photos, "never", [*TRAIN, ("a", "val")])
    options = as_options([*TINY, *SHORT, "train.max_steps=4", "eval.every_steps=0", *overrides])
    outcome = edgeembed("teacher-train", "--data", data, "--recipe", "quickstart", "--out", tmp_path / "run", *options)
    assert outcome.code == 0, outcome.stderr
    assert "eval.every_steps = 0" in json.loads((tmp_path / "run" / "eval.json").read_text())["not_scored"]


@pytest.mark.parametrize("overrides", [[], ["train.batch_size=1"], ["train.batch_size=1", "train.accumulate_steps=2"]])
def test_a_student_of_unlabelled_images_is_written_whatever_its_batches(
    edgeembed: Run, photos: Path, tmp_path: Path, overrides: list[str]
) -> None:
    data = write_table(photos, "flat", [*(("", "train") for _ in range(6)), ("", "val"), ("", "val")])
    vectors = list(np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32))
    theirs = pa.table({"path": [f"{number}.png" for number in range(8)], "embedding": vectors})
    pa.parquet.write_table(theirs, tmp_path / "theirs.parquet")
    store = tmp_path / "store"
    assert edgeembed("targets", "import", tmp_path / "theirs.parquet", "--data", data, "--out", store).code == 0
    options = as_options([*TINY_STUDENT, *SHORT, "train.max_steps=2", *overrides])
    command = ["distill", "--teacher", store, "--data", data, "--recipe", "quickstart", "--out", tmp_path / "run"]
    outcome = edgeembed(*command, *options)
    assert outcome.code == 0, outcome.stderr
    result = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert (result["scores"], result["untrained"], result["unlabelled"]) == (None, None, 2)
