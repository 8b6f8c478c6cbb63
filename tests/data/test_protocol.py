"""Queries and index of val and test: decided by the rows of each class or domain, also where data sets are joined."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeembed.data.manifest import Manifest, ManifestRow, build_manifest, read_manifest, write_manifest
from edgeembed.data.sampling import prepare
from edgeembed.data.summary import limitations
from edgeembed.errors import UserError
from edgeembed.evaluation import EmbeddedRows, RetrievalProtocol
from tests.conftest import TINY, as_options

Row = tuple[str, str | None, str] | tuple[str, str | None, str, str]


def table(*rows: Row) -> Manifest:
    """Rows of (domain, label, split) or (domain, label, split, role); each image is named by its row number."""
    named = [
        ManifestRow(path=f"{at}", domain=row[0], label=row[1], split=row[2], role=row[3] if len(row) > 3 else None)
        for at, row in enumerate(rows)
    ]
    return build_manifest(Path(), named, source="test")


def evaluated(manifest: Manifest, split: str) -> tuple[list[int], list[int], int]:
    """Query rows, index rows and the number of queries without a match."""
    planned = RetrievalProtocol.of_split(manifest, split)
    return planned.query.tolist(), planned.index.tolist(), planned.queries_without_match


TOYS = [("toys", "a", "train"), ("toys", "a", "val")]  # train holds the class of val
DISHES = [("dishes", "x", "train"), ("dishes", "y", "val"), ("dishes", "y", "val")]  # it does not
CARS = [("cars", "m", "train"), ("cars", "m", "val"), ("cars", "n", "val"), ("cars", "n", "val")]  # of one it does


@pytest.mark.parametrize(
    ("rows", "query", "index", "without_match"),
    [
        (TOYS, [1], [0], 0),
        (DISHES, [1, 2], [1, 2], 0),
        (CARS, [1, 2, 3], [0, 2, 3], 0),
        (TOYS + DISHES, [1, 3, 4], [0, 3, 4], 0),
        (DISHES + TOYS, [1, 2, 4], [1, 2, 3], 0),
        (TOYS + CARS, [1, 3, 4, 5], [0, 2, 4, 5], 0),
        (TOYS + DISHES + CARS, [1, 3, 4, 6, 7, 8], [0, 3, 4, 5, 7, 8], 0),
        # A label is another class in another domain. One val image has no match. Unlabelled rows are left out.
        ([*TOYS, ("dishes", "a", "val"), ("dishes", "a", "val")], [1, 2, 3], [0, 2, 3], 0),
        ([*TOYS, ("dishes", "y", "val")], [1, 2], [0, 2], 1),
        ([*TOYS, ("toys", None, "train"), ("toys", None, "val")], [1], [0], 0),
    ],
)
def test_val_is_searched_for_in_train_by_class_and_else_in_val(
    rows: list[Row], query: list[int], index: list[int], without_match: int
) -> None:
    assert evaluated(table(*rows), "val") == (query, index, without_match)


WITH_ROLES = [("toys", "a", "train", "index"), ("toys", "a", "test", "query"), ("toys", "a", "test")]
WITHOUT_ROLES = [("dishes", "x", "test"), ("dishes", "x", "test")]
BOTH = [("cars", "m", "test", "both"), ("cars", "m", "test", "index"), ("cars", "m", "test", "query")]


@pytest.mark.parametrize(
    ("rows", "query", "index", "without_match"),
    [
        (WITH_ROLES, [1], [0], 0),
        (WITHOUT_ROLES, [0, 1], [0, 1], 0),
        (BOTH, [0, 2], [0, 1], 0),
        (WITH_ROLES + WITHOUT_ROLES, [1, 3, 4], [0, 3, 4], 0),
        (WITHOUT_ROLES + WITH_ROLES, [0, 1, 3], [0, 1, 2], 0),
        (WITH_ROLES + WITHOUT_ROLES + BOTH, [1, 3, 4, 5, 7], [0, 3, 4, 5, 6], 0),
        # Index rows of train and unlabelled ones stay in the one index; a domain without index has no match.
        ([*WITHOUT_ROLES, ("dishes", "x", "train", "index"), ("dishes", None, "test")], [0, 1], [0, 1, 2], 0),
        ([*WITHOUT_ROLES, ("dishes", None, "test", "index")], [0, 1], [0, 1, 2], 0),
        ([*WITHOUT_ROLES, ("cars", "m", "test", "query")], [0, 1, 2], [0, 1], 1),
        ([*WITHOUT_ROLES, ("cars", "m", "test", "index")], [0, 1], [0, 1, 2], 0),
    ],
)
def test_roles_hold_for_their_domain_and_the_index_is_one(
    rows: list[Row], query: list[int], index: list[int], without_match: int
) -> None:
    assert evaluated(table(*rows), "test") == (query, index, without_match)


@pytest.mark.parametrize(
    ("rows", "split", "message"),
    [
        (TOYS, "test", "no labelled rows in split 'test'"),
        ([("toys", None, "val")], "val", "no labelled rows in split 'val'"),
        ([("toys", "a", "test", "query")], "test", "none of role index"),
        ([("toys", "a", "test", "index"), ("cars", "m", "test", "index")], "test", "no rows of role query"),
    ],
)
def test_nothing_to_evaluate_on_is_an_error_that_names_it(rows: list[Row], split: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        table(*rows).evaluation(split)


def test_an_unlabelled_index_image_is_no_label_of_one_image() -> None:
    planned = RetrievalProtocol.of_split(table(*WITHOUT_ROLES, ("dishes", None, "test", "index")), "test")
    assert planned.labels_of_one_image == 0


def test_evaluation_sees_rows_that_training_never_visits_once() -> None:
    rows = [("toys", "big", "train", "index")] * 5 + [("toys", "small", "train", "index")] * 2
    rows += [("toys", label, split, "query") for label in ("big", "small") for split in ("val", "test")]
    before = table(*rows)
    after, _ = prepare([before], cap=3, minimum=3, resample_to=9)
    assert sorted(after.visits(after.rows("train")).tolist()) == [0, 0, 0, 0, 3, 3, 3]
    for split in ("val", "test"):
        assert evaluated(after, split) == evaluated(before, split)
        assert evaluated(after, split)[1:] == ([0, 1, 2, 3, 4, 5, 6], 0)
        assert (
            RetrievalProtocol.of_split(after, split).fingerprint
            == RetrievalProtocol.of_split(before, split).fingerprint
        )


def pictures(root: Path, domain: str, rows: list[tuple[str, str]]) -> Path:
    """A manifest of a domain, of rows (label, split), whose images are of one colour each."""
    named = []
    for number, (label, split) in enumerate(rows):
        path = root / domain / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (len(domain) * 20, ord(label) * 2 - 150, number * 9)).save(path)
        named.append(ManifestRow(path=path.name, label=label, domain=domain, split=split))
    write_manifest(root / domain / "m.csv", build_manifest(root / domain, named, source=domain))
    return root / domain / "m.csv"


def test_a_teacher_is_evaluated_on_all_of_val_of_joined_sets(edgeembed: Callable[..., Any], tmp_path: Path) -> None:
    toys = pictures(tmp_path, "toys", [("a", "train")] * 5 + [("b", "train")] * 5 + [("a", "val"), ("b", "val")])
    dishes = pictures(tmp_path, "dishes", [("x", "train")] * 5 + [("y", "train")] * 5 + [("z", "val")] * 3)
    joined = tmp_path / "joined.parquet"
    prepared = edgeembed("data", "prepare", toys, dishes, "--out", joined, "--resample-to", 7, "--json")
    assert prepared.code == 0, prepared.stderr
    assert (json.loads(prepared.stdout)["images"], json.loads(prepared.stdout)["visits"]) == (20, 28)
    command = ["teacher-train", "--data", joined, "--recipe", "quickstart", "--out", tmp_path / "run"]
    assert edgeembed(*command, *as_options([*TINY, "train.max_steps=2"])).code == 0
    kept = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert {key: kept[key] for key in ("queries", "index", "queries_without_match", "not_scored")} == {
        "queries": 5,
        "index": 13,
        "queries_without_match": 0,
        "not_scored": None,
    }
    assert kept["scores"]["queries"] == 5
    assert len(read_manifest(joined)) == 25


def test_commands_log_what_can_be_scored(
    edgeembed: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [("a", "train"), ("a", "train"), ("a", "val"), ("b", "val"), ("c", "test"), ("c", "test")]
    manifest, out = pictures(tmp_path, "toys", rows), tmp_path / "p.csv"
    for arguments in (
        ["import", "table", manifest, "--out", out],
        ["prepare", manifest, "--out", out, "--min", 1],
        ["stats", manifest],
        ["check", manifest],
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            result = edgeembed("data", *arguments, "--json")
        scored = [(one["split"], one["queries_without_match"]) for one in json.loads(result.stdout)["evaluation"]]
        assert scored == [("val", 1), ("test", 0)]
        assert (
            "val: 2 queries against 3 index images; queries without another image of their class in the index: 1"
            in caplog.text
        )
        assert "test: 2 queries against 2 index images" in caplog.text


def test_test_images_without_a_role_beside_others_with_one_are_listed_as_a_limitation() -> None:
    assert limitations(table(*WITH_ROLES, *WITHOUT_ROLES)) == [
        "1 test images have no role, although other images of their domain have one, first 2: they are neither queries "
        "nor in the index; set `role`"
    ]


def test_an_image_in_two_rows_is_one_image() -> None:
    rows = [
        ManifestRow(path="a.png", label="x", domain="toys", split="test", role="query"),
        ManifestRow(path="./a.png", label="x", domain="toys", split="test", role="index"),
        ManifestRow(path="b.png", label="y", domain="toys", split="test", role="query"),
        ManifestRow(path="b.png", label="y", domain="toys", split="test", role="both"),
        ManifestRow(path="c.png", label="y", domain="toys", split="test", role="index"),
        ManifestRow(path="a.png", label="z", domain="toys", split="test", role="index"),
    ]
    manifest = build_manifest(Path(), rows, source="test")
    # a.png is the only image of x; b.png is one query and one index image, though its rows are two.
    assert evaluated(manifest, "test") == ([0, 2], [1, 3, 4, 5], 1)
    # Ranked for a.png: b, c. Ranked for b.png: a (as x and as z), c. Embeddings are such that a query's image is first.
    embedding_ND = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0.6, 0.8], [1, 0]], np.float32)
    embedded = EmbeddedRows(embedding_ND=embedding_ND, row_N=np.arange(6))
    planned = RetrievalProtocol.of_split(manifest, "test")
    scores = planned.score(embedded, embedded).scores
    assert scores.queries_without_match == 1
    assert scores.recall_at_1 == 1.0
    assert scores.chance["map"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)  # one match among three


def test_an_image_of_two_labels_does_not_retrieve_itself() -> None:
    rows = [
        ManifestRow(path=path, label=label, domain="toys", split="val")
        for path, label in (("a", "x"), ("b", "x"), ("a", "y"), ("c", "y"))
    ]
    manifest = build_manifest(Path(), rows, source="test")
    planned = RetrievalProtocol.of_split(manifest, "val")
    embedding_ND = np.array([[1, 0], [0.8, 0.6], [1, 0], [0.6, 0.8]], np.float32)
    embedded = EmbeddedRows(embedding_ND=embedding_ND, row_N=np.arange(4))
    scored = planned.score(embedded, embedded)
    # As x: b before c. As y: c after b. b: c, then a twice. c: b, then a twice.
    assert scored.average_precision_Q == pytest.approx([1, 1 / 2, 1 / 2, 1 / 3])
