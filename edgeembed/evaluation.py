"""Retrieval scores of embeddings of manifest rows: one protocol for training, the gate of an export and the bench.

What can be scored is known from the manifest alone, before a network is built or an image is read. What cannot be is
counted, logged and left empty; no command fails for it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeembed.data.manifest import Manifest, Rows
from edgeembed.errors import UserError
from edgeembed.intervals import Interval, ratio_intervals, share_text
from edgeembed.metrics import METRICS, RetrievalScores, mean_scores, not_scored, query_values
from edgeembed.spread import Spread, collapse_warning

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """The queries and index images of one split, as rows of the manifest, and what of the split cannot be scored.

    `not_scored` is the reason where nothing can be, else None. `unlabelled` counts the split's rows without a label;
    `queries_without_match` those queries that have no other image of their label and domain in the index, and
    `labels_of_one_image` the labels of which queries and index together hold a single image.
    """

    manifest: Manifest
    split: str
    query: Rows
    index: Rows
    unlabelled: int = 0
    queries_without_match: int = 0
    labels_of_one_image: int = 0
    not_scored: str | None = None
    others: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    """Rows that are embedded and not scored."""

    @functools.cached_property
    def rows(self) -> Rows:
        """Queries, index and others together, each row once, ascending."""
        return np.union1d(np.union1d(self.query, self.index), self.others)

    @property
    def files(self) -> list[str]:
        return [self.manifest.files[row] for row in self.rows]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies the rows and bytes of queries and index images; the root folder and `repeat` do not count."""
        parts = [self.manifest.fingerprint_of(rows) for rows in (self.query, self.index)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]

    def counts(self) -> dict[str, Any]:
        """Facts of the protocol for a result, beside its figures."""
        return {
            "split": self.split,
            "queries": len(self.query),
            "index": len(self.index),
            "queries_without_match": self.queries_without_match,
            "labels_of_one_image": self.labels_of_one_image,
            "unlabelled": self.unlabelled,
            "not_scored": self.not_scored,
        }

    def describe(self) -> str:
        """One line: what can be scored, and what cannot."""
        if self.not_scored is not None:
            return f"{self.split}: retrieval is not scored: {self.not_scored}"
        left_out = []
        if self.queries_without_match:
            left_out.append(
                f"queries without another image of their class in the index: {self.queries_without_match} "
                f"(classes of one image: {self.labels_of_one_image})"
            )
        if self.unlabelled:
            left_out.append(f"images without a label: {self.unlabelled}")
        text = f"{self.split}: {len(self.query)} queries against {len(self.index)} index images"
        if np.array_equal(np.sort(self.query), np.sort(self.index)):
            text += ", the same images (leave-one-out)"
        return "; ".join([text, *left_out])

    @property
    def is_partial(self) -> bool:
        return self.not_scored is not None or self.queries_without_match + self.unlabelled > 0


def plan_evaluation(manifest: Manifest, split: str) -> EvaluationSet:
    """What the manifest's protocol can score of "val" or "test"; never an error."""
    rows = manifest.rows(split)
    unlabelled = sum(manifest.label[row] is None for row in rows)
    query = index = np.zeros(0, np.int64)
    reason: str | None = None
    if rows.size == 0:
        reason = f"the manifest has no {split} split"
    elif unlabelled == rows.size:
        reason = f"none of the {rows.size} images of the {split} split has a label"
    else:
        try:
            query, index = manifest.evaluation(split)
        except UserError as error:
            reason = str(error)
    planned = EvaluationSet(
        manifest=manifest, split=split, query=query, index=index, unlabelled=unlabelled, not_scored=reason
    )
    return restrict(planned, query, index)


def restrict(planned: EvaluationSet, query: Rows, index: Rows) -> EvaluationSet:
    """The set with some of its queries and index images; not scored where no query that is left has a match."""
    manifest, reason = planned.manifest, planned.not_scored
    without_match = int(np.count_nonzero(~have_match(manifest, query, index)))
    labelled = [row for row in np.union1d(query, index).tolist() if manifest.label[row] is not None]
    images = {(manifest.class_of(row), manifest.image_number[row]) for row in labelled}
    image_count = Counter(name for name, _ in images)
    labels_of_one_image = sum(count == 1 for count in image_count.values())
    if reason is None and without_match == query.size:
        reason = (
            f"none of its {query.size} queries has another image of its label and domain in the index "
            f"(classes of one image: {labels_of_one_image})"
        )
    return dataclasses.replace(
        planned,
        query=query,
        index=index,
        queries_without_match=without_match,
        labels_of_one_image=labels_of_one_image,
        not_scored=reason,
    )


def choose_split(manifest: Manifest, *splits: str) -> EvaluationSet:
    """The first of some splits that can be scored; where none can, the first that has images, with every reason."""
    planned = [plan_evaluation(manifest, split) for split in splits]
    for one in planned:
        if one.not_scored is None:
            return one
    reason = "; ".join(f"{one.split}: {one.not_scored}" for one in planned)
    first = next((one for one in planned if manifest.rows(one.split).size), planned[0])
    return dataclasses.replace(first, not_scored=reason)


def have_match(manifest: Manifest, query: Rows, index: Rows) -> npt.NDArray[np.bool_]:
    """Which queries have an index image of their label and domain that is another than their own (Q,)."""
    images_of: dict[tuple[str, str | None], set[int]] = defaultdict(set)
    for row in index.tolist():
        images_of[manifest.class_of(row)].add(int(manifest.image_number[row]))
    images_of_query = ((images_of[manifest.class_of(row)], int(manifest.image_number[row])) for row in query.tolist())
    return np.array([len(images) > (own in images) for images, own in images_of_query], dtype=np.bool_)


def log_scope(evaluation: EvaluationSet) -> None:
    """Logs, before any work, what will be scored; a warning where something cannot be."""
    log.log(logging.WARNING if evaluation.is_partial else logging.INFO, "%s", evaluation.describe())


def warn_if_collapsed(name: str, spread: Spread | None, evaluation: EvaluationSet) -> None:
    """Logs a collapsed embedding space, in which small errors change retrieval figures; nothing for any other."""
    num_classes = len(evaluation.manifest.class_names(evaluation.rows)) or None
    if (warning := collapse_warning(name, spread, num_classes=num_classes)) is not None:
        log.warning("%s", warning)


@dataclass(frozen=True, kw_only=True)
class ScoredQueries:
    """A network's scores, and what paired intervals need of the Q queries that have a match.

    `row_Q`: their manifest rows; `class_Q`: domain and label of each; `average_precision_Q`: in 0..1.
    """

    scores: RetrievalScores
    row_Q: Rows
    class_Q: tuple[tuple[str, str | None], ...]
    average_precision_Q: Float64Array


@dataclass(frozen=True, kw_only=True)
class Retention:
    """A student's mAP as a share of its teacher's, with paired 95 % intervals, named as in `RetrievalScores`."""

    value: float
    ci95: Interval
    ci95_queries: Interval
    ci95_classes: Interval | None

    def describe(self) -> str:
        """For one line of text: "92.8 % [91.5, 94.0]"."""
        return share_text(self.value, self.ci95)


def score_queries(
    query_embedding_MD: FloatArray,
    query_rows_M: Rows,
    index_embedding_ND: FloatArray,
    index_rows_N: Rows,
    manifest: Manifest,
    query: Rows,
    index: Rows,
) -> ScoredQueries:
    """Scores embeddings of manifest rows, (M, D) and (N, D): those of `query` against those of `index`.

    Figures are None where no query or index image is among them, or no query has a match. Embeddings that are not
    finite are left out, with a warning.
    """
    as_query = np.isin(query_rows_M, query) & are_finite(query_embedding_MD)
    as_index = np.isin(index_rows_N, index) & are_finite(index_embedding_ND)
    if not as_query.any() or not as_index.any():
        return ScoredQueries(
            scores=not_scored(int(np.count_nonzero(as_query))),
            row_Q=np.zeros(0, np.int64),
            class_Q=(),
            average_precision_Q=np.zeros(0),
        )
    rows = query_rows_M[as_query]
    sides = protocol(manifest, rows, index_rows_N[as_index])
    values = query_values(query_embedding_MD[as_query], index_embedding_ND[as_index], **sides)
    value_QM, num_relevant_Q, _ = values
    has_match = num_relevant_Q > 0
    return ScoredQueries(
        scores=mean_scores(*values, query_label=sides["query_label"], query_domain=sides["query_domain"]),
        row_Q=rows[has_match],
        class_Q=tuple(manifest.class_of(row) for row in rows[has_match].tolist()),
        average_precision_Q=value_QM[has_match, METRICS.index("map")],
    )


def retention(student: ScoredQueries, teacher: ScoredQueries) -> Retention | None:
    """The student's mAP divided by the teacher's, over the queries that both were scored on.

    None where there are no such queries, or the teacher's mAP on them is 0.
    """
    _, in_student, in_teacher = np.intersect1d(student.row_Q, teacher.row_Q, assume_unique=True, return_indices=True)
    student_Q, teacher_Q = student.average_precision_Q[in_student], teacher.average_precision_Q[in_teacher]
    if not teacher_Q.any():
        return None
    class_Q = [student.class_Q[query] for query in in_student]
    intervals = ratio_intervals(student_Q, teacher_Q, class_Q)
    return Retention(
        value=float(student_Q.mean() / teacher_Q.mean()),
        ci95=intervals.wider,
        ci95_queries=intervals.over_queries,
        ci95_classes=intervals.over_classes if len(set(class_Q)) > 1 else None,
    )


def are_finite(embedding_ND: FloatArray) -> npt.NDArray[np.bool_]:
    finite_N = np.asarray(np.isfinite(embedding_ND).all(axis=1))
    if not finite_N.all():
        log.warning("left out: %d of %d embeddings hold NaN or infinity", (~finite_N).sum(), finite_N.size)
    return finite_N


def protocol(manifest: Manifest, query_rows: Rows, index_rows: Rows) -> dict[str, Any]:
    """Labels, domains and identities of queries and index images, as metrics.py takes them."""
    return {
        "query_label": [manifest.label[row] or "" for row in query_rows],
        "index_label": [manifest.label[row] or "" for row in index_rows],
        "query_domain": [manifest.domain[row] for row in query_rows],
        "index_domain": [manifest.domain[row] for row in index_rows],
        "query_id": manifest.image_number[query_rows],
        "index_id": manifest.image_number[index_rows],
    }
