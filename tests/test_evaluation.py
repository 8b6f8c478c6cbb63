"""What of a manifest can be scored, known before any image is read; what cannot is counted and never an error."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from edgeembed.data.manifest import Manifest, ManifestRow, build_manifest
from edgeembed.evaluation import EmbeddedRows, RetrievalProtocol, ScoredQueries, have_match, retention
from edgeembed.metrics import not_scored

Row = tuple[str | None, str] | tuple[str | None, str, str]


def table(*rows: Row) -> Manifest:
    """Rows of (label, split) or (label, split, role), all of one domain."""
    named = [
        ManifestRow(path=f"{at}.png", label=row[0], domain="d", split=row[1], role=row[2] if len(row) > 2 else None)
        for at, row in enumerate(rows)
    ]
    return build_manifest(Path(), named, source="test")


def embedded_as(embedding_ND: np.ndarray) -> EmbeddedRows:
    """Embeddings of rows 0, 1, 2, ..."""
    return EmbeddedRows(embedding_ND=embedding_ND, row_N=np.arange(len(embedding_ND)))


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
    planned = RetrievalProtocol.of_split(table(*rows), split)
    assert (len(planned.query), planned.queries_without_match, planned.unlabelled) == counts
    if reason is None:
        assert planned.not_scored is None
    else:
        assert reason in str(planned.not_scored)
    with caplog.at_level(logging.INFO):
        planned.log_coverage()
    (record,) = caplog.records
    assert record.levelname == ("WARNING" if reason or any(counts[1:]) else "INFO")
    assert record.getMessage().startswith(f"{split}: ")
    assert planned.counts().not_scored == planned.not_scored


def test_labels_of_one_image_are_counted() -> None:
    planned = RetrievalProtocol.of_split(table(*ONE_EACH, ("twice", "val"), ("twice", "val")), "val")
    assert (planned.labels_of_one_image, planned.queries_without_match) == (5, 5)
    assert "classes of one image: 5" in planned.describe()
    assert "classes of one image: 5" in RetrievalProtocol.of_split(table(*ONE_EACH), "val").describe()


def test_the_first_split_that_can_be_scored_is_chosen_and_all_reasons_are_given_where_none_can() -> None:
    val_only = table(("a", "val"), ("a", "val"), (None, "test"))
    assert RetrievalProtocol.of_first_scorable(val_only, "test", "val").split == "val"
    nothing = RetrievalProtocol.of_first_scorable(table(("a", "train"), (None, "test")), "val", "test")
    assert nothing.split == "test"
    assert str(nothing.not_scored).startswith("val: the manifest has no val split; test: none of the 1 images")


def test_the_fingerprint_names_queries_and_index_wherever_the_root_is() -> None:
    one = RetrievalProtocol.of_split(table(("a", "val"), ("a", "val"), ("b", "train")), "val")
    other = RetrievalProtocol.of_split(table(("a", "val"), ("a", "val"), ("c", "train")), "val")
    another = RetrievalProtocol.of_split(table(("b", "val"), ("b", "val"), ("b", "train")), "val")
    assert one.fingerprint == other.fingerprint != another.fingerprint


def test_a_query_does_not_match_itself() -> None:
    manifest = table(("a", "val"), ("a", "val"), ("b", "val"))
    rows = np.arange(3)
    assert have_match(manifest, rows, rows).tolist() == [True, True, False]
    assert have_match(manifest, rows[:1], rows[1:]).tolist() == [True]
    assert have_match(manifest, rows[:0], rows).tolist() == []


def test_embeddings_that_are_missing_or_not_finite_leave_figures_empty(caplog: pytest.LogCaptureFixture) -> None:
    protocol = RetrievalProtocol.of_split(table(("a", "val"), ("a", "val"), ("b", "val")), "val")
    embedded = embedded_as(np.eye(3, dtype=np.float32))
    nothing = embedded.take(np.zeros(0, np.int64))
    scores = protocol.score(embedded, nothing).scores
    assert (scores.map, scores.queries, scores.queries_without_match) == (None, 3, 3)
    assert protocol.score(nothing, embedded).scores.queries == 0
    broken_ND = embedded.embedding_ND.copy()
    broken_ND[0] = np.nan
    broken = embedded_as(broken_ND)
    scores = protocol.score(broken, broken).scores
    assert (scores.map, scores.queries) == (None, 2)
    assert "1 of 3 embeddings hold NaN or infinity" in caplog.text


def scored(average_precision_Q: list[float], row_Q: list[int], class_Q: list[str]) -> ScoredQueries:
    return ScoredQueries(
        scores=not_scored(0),
        row_Q=np.array(row_Q),
        class_Q=tuple(("d", name) for name in class_Q),
        average_precision_Q=np.array(average_precision_Q),
    )


def test_retention_pairs_the_queries_of_student_and_teacher() -> None:
    """By hand: rows 4 and 7 are the ones that both have; (.2 + .6) / (.5 + .75)."""
    student = scored([0.6, 0.2, 1.0], [7, 4, 9], ["b", "a", "b"])
    teacher = scored([0.1, 0.5, 0.75], [2, 4, 7], ["a", "a", "b"])
    found = retention(student, teacher)
    assert found is not None
    assert found.value == pytest.approx(0.64)
    assert found.ci95 == pytest.approx((0.4, 0.8))  # row 4 twice, row 7 twice
    assert found.ci95 == found.ci95_queries == found.ci95_classes
    assert found.describe() == "64.0 % [40.0, 80.0]"


def test_retention_of_a_proportional_student_has_no_width_and_one_class_no_interval_over_classes() -> None:
    teacher_Q = np.random.default_rng(0).uniform(0.2, 1, 40)
    rows, one_class = list(range(40)), ["a"] * 40
    found = retention(scored((0.9 * teacher_Q).tolist(), rows, one_class), scored(teacher_Q.tolist(), rows, one_class))
    assert found is not None
    assert found.ci95 == found.ci95_queries == pytest.approx((0.9, 0.9))
    assert found.ci95_classes is None


def test_retention_over_classes_is_wider_where_a_student_fails_at_whole_classes() -> None:
    class_Q = np.repeat(np.arange(30), 20)
    names, rows = [str(one) for one in class_Q], list(range(600))
    found = retention(scored((class_Q % 2).astype(float).tolist(), rows, names), scored([1.0] * 600, rows, names))
    assert found is not None
    assert found.ci95_classes is not None
    assert found.ci95 == found.ci95_classes
    half_width = 1.96 * np.sqrt(0.25 / 30)
    assert found.ci95 == pytest.approx((0.5 - half_width, 0.5 + half_width), abs=0.04)
    assert found.ci95_queries == pytest.approx((0.46, 0.54), abs=0.01)


def test_without_queries_that_both_have_there_is_no_retention() -> None:
    nothing, one = scored([], [], []), scored([0.5], [1], ["a"])
    assert retention(nothing, nothing) is retention(one, nothing) is retention(nothing, one) is None
    assert retention(one, scored([0.5], [2], ["a"])) is None
    assert retention(one, scored([0.0], [1], ["a"])) is None


def test_scored_queries_are_those_with_a_match() -> None:
    protocol = RetrievalProtocol.of_split(
        table(("a", "val"), ("b", "val"), ("a", "val"), ("c", "val"), ("c", "val")), "val"
    )
    embedding_ND = np.eye(5, dtype=np.float32)
    embedding_ND[2] = embedding_ND[0]
    embedded = embedded_as(embedding_ND)
    found = protocol.score(embedded, embedded)
    assert found.row_Q.tolist() == [0, 2, 3, 4]
    assert found.class_Q == (("d", "a"), ("d", "a"), ("d", "c"), ("d", "c"))
    # Rows 3 and 4 are as far from each other as from the rest: ties are ordered by position.
    assert found.average_precision_Q.tolist() == [1, 1, 1 / 4, 1 / 4]
    assert found.scores == protocol.score(embedded, embedded).scores
    assert (found.scores.map, found.scores.queries_without_match) == (5 / 8, 1)


def test_the_same_label_in_two_domains_is_two_classes() -> None:
    named = [
        ManifestRow(path=f"{at}.png", label="a", domain=domain, split="val", role=None)
        for at, domain in enumerate(["x", "x", "y", "y"])
    ]
    manifest = build_manifest(Path(), named, source="test")
    embedded = embedded_as(np.eye(4, dtype=np.float32))
    found = RetrievalProtocol.of_split(manifest, "val").score(embedded, embedded)
    assert found.class_Q == (("x", "a"), ("x", "a"), ("y", "a"), ("y", "a"))
    assert found.scores.ci95_classes["map"] is not None


def test_rows_outside_the_protocol_are_neither_queries_nor_index_images() -> None:
    """Rows 2 and 3 are of the train split, whose classes val lacks; rows may come in any order."""
    protocol = RetrievalProtocol.of_split(table(("a", "val"), ("a", "val"), ("b", "train"), ("b", "train")), "val")
    order = np.array([3, 1, 0, 2])
    embedded = EmbeddedRows(embedding_ND=np.eye(4, dtype=np.float32)[order], row_N=order)
    found = protocol.score(embedded, embedded)
    assert (found.scores.queries, sorted(found.row_Q.tolist())) == (2, [0, 1])
    assert found.scores.map == 1.0  # the query itself is left out, so one image is ranked: the right one


def test_the_embeddings_of_some_rows_keep_their_order() -> None:
    embedded = EmbeddedRows(embedding_ND=np.eye(4, dtype=np.float32), row_N=np.array([2, 5, 7, 9]))
    taken = embedded.take(np.array([9, 5, 8]))
    assert taken.row_N.tolist() == [5, 9]
    np.testing.assert_array_equal(taken.embedding_ND, np.eye(4, dtype=np.float32)[[1, 3]])


def test_a_restricted_protocol_counts_again() -> None:
    protocol = RetrievalProtocol.of_split(table(("a", "val"), ("a", "val"), ("b", "val"), ("b", "val")), "val")
    part = protocol.restrict(protocol.query[:3], protocol.index[:3])
    assert (len(part.query), part.queries_without_match, part.labels_of_one_image, part.not_scored) == (3, 1, 1, None)
    nothing = protocol.restrict(protocol.query[:1], protocol.index[:1])
    assert "none of its 1 queries has another image" in str(nothing.not_scored)
