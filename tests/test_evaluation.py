"""What of a manifest can be scored, known before any image is read; what cannot is counted and never an error."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from edgeembed.data.manifest import Manifest, ManifestRow, build_manifest
from edgeembed.evaluation import choose_split, have_match, log_scope, plan_evaluation, score_rows

Row = tuple[str | None, str] | tuple[str | None, str, str]


def table(*rows: Row) -> Manifest:
    """Rows of (label, split) or (label, split, role), all of one domain."""
    named = [
        ManifestRow(path=f"{at}.png", label=row[0], domain="d", split=row[1], role=row[2] if len(row) > 2 else None)
        for at, row in enumerate(rows)
    ]
    return build_manifest(Path(), named, source="test")


ONE_EACH = [(f"product{at}", "val") for at in range(5)]


@pytest.mark.parametrize(
    ("rows", "split", "reason", "counts"),
    [
        ([("a", "train"), ("a", "train")], "val", "the manifest has no val split", (0, 0, 0)),
        ([("a", "train"), ("a", "val")], "test", "the manifest has no test split", (0, 0, 0)),
        ([("a", "train"), (None, "val"), (None, "val")], "val", "none of the 2 images of the val split", (0, 0, 2)),
        (ONE_EACH, "val", "none of its 5 queries has another image of its label", (5, 5, 0)),
        ([("a", "train"), ("b", "val")], "val", "none of its 1 queries", (1, 1, 0)),
        ([("a", "test", "query"), ("b", "test", "index")], "test", "none of its 1 queries", (1, 1, 0)),
        ([("a", "test", "query"), ("a", "test", "query")], "test", "none of role index", (0, 0, 0)),
        ([("a", "val"), ("b", "val"), ("b", "val"), (None, "val")], "val", None, (3, 1, 1)),
        ([("a", "train"), ("a", "val")], "val", None, (1, 0, 0)),
        ([("a", "train"), ("a", "train"), ("a", "val"), ("b", "val")], "val", None, (2, 1, 0)),
        ([("only", "test"), ("only", "test")], "test", None, (2, 0, 0)),
    ],
)
def test_what_can_be_scored_is_known_from_the_manifest(
    rows: list[Row], split: str, reason: str | None, counts: tuple[int, int, int], caplog: pytest.LogCaptureFixture
) -> None:
    planned = plan_evaluation(table(*rows), split)
    assert (len(planned.query), planned.queries_without_match, planned.unlabelled) == counts
    if reason is None:
        assert planned.not_scored is None
    else:
        assert reason in str(planned.not_scored)
    with caplog.at_level(logging.INFO):
        log_scope(planned)
    (record,) = caplog.records
    assert record.levelname == ("WARNING" if reason or any(counts[1:]) else "INFO")
    assert record.getMessage().startswith(f"{split}: ")
    assert planned.counts()["not_scored"] == planned.not_scored


def test_labels_of_one_image_are_counted() -> None:
    planned = plan_evaluation(table(*ONE_EACH, ("twice", "val"), ("twice", "val")), "val")
    assert (planned.labels_of_one_image, planned.queries_without_match) == (5, 5)
    assert "5 labels have one image" in planned.describe()
    assert "5 labels have one image" in plan_evaluation(table(*ONE_EACH), "val").describe()


def test_the_first_split_that_can_be_scored_is_chosen_and_all_reasons_are_given_where_none_can() -> None:
    val_only = table(("a", "val"), ("a", "val"), (None, "test"))
    assert choose_split(val_only, "test", "val").split == "val"
    nothing = choose_split(table(("a", "train"), (None, "test")), "val", "test")
    assert nothing.split == "test"
    assert str(nothing.not_scored).startswith("val: the manifest has no val split; test: none of the 1 images")


def test_the_fingerprint_names_queries_and_index_wherever_the_root_is() -> None:
    one = plan_evaluation(table(("a", "val"), ("a", "val"), ("b", "train")), "val")
    other = plan_evaluation(table(("a", "val"), ("a", "val"), ("c", "train")), "val")
    another = plan_evaluation(table(("b", "val"), ("b", "val"), ("b", "train")), "val")
    assert one.fingerprint == other.fingerprint != another.fingerprint


def test_a_query_does_not_match_itself() -> None:
    manifest = table(("a", "val"), ("a", "val"), ("b", "val"))
    rows = np.arange(3)
    assert have_match(manifest, rows, rows).tolist() == [True, True, False]
    assert have_match(manifest, rows[:1], rows[1:]).tolist() == [True]
    assert have_match(manifest, rows[:0], rows).tolist() == []


def test_embeddings_that_are_missing_or_not_finite_leave_figures_empty(caplog: pytest.LogCaptureFixture) -> None:
    manifest = table(("a", "val"), ("a", "val"), ("b", "val"))
    rows, embedding_ND = np.arange(3), np.eye(3, dtype=np.float32)
    nothing_ND = np.zeros((0, 3), np.float32)
    scores = score_rows(embedding_ND, rows, nothing_ND, rows[:0], manifest, rows, rows)
    assert (scores.map, scores.queries, scores.queries_without_match) == (None, 3, 3)
    assert score_rows(nothing_ND, rows[:0], embedding_ND, rows, manifest, rows, rows).queries == 0
    broken_ND = embedding_ND.copy()
    broken_ND[0] = np.nan
    scores = score_rows(broken_ND, rows, broken_ND, rows, manifest, rows, rows)
    assert (scores.map, scores.queries) == (None, 2)
    assert "1 of 3 embeddings hold NaN or infinity" in caplog.text
