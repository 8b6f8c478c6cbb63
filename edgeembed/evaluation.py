"""The one retrieval protocol of training, the gate of an export and the bench: which images are searched for where.

A protocol is built from the manifest alone, so what can be scored is known before a network is built or an image is
read. Images and queries that cannot be scored are counted, logged and left out; no command fails because of them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, ConfigDict

from edgeembed.arrays import BoolArray, Float64Array, FloatArray
from edgeembed.data.manifest import Manifest, Rows
from edgeembed.errors import UserError
from edgeembed.intervals import Interval, ratio_intervals, share_text
from edgeembed.metrics import METRICS, RetrievalScores, mean_scores, not_scored, query_values
from edgeembed.spread import Spread, collapse_warning

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)  # arrays have no single truth value
class EmbeddedRows:
    """Embeddings of some rows of a manifest: unit vectors (N, D), and the manifest row of each (N,), in any order."""

    embedding_ND: FloatArray
    row_N: Rows

    def take(self, row_M: Rows) -> EmbeddedRows:
        """The embeddings of those of the given rows that are here."""
        chosen_N = np.isin(self.row_N, row_M)
        return EmbeddedRows(embedding_ND=self.embedding_ND[chosen_N], row_N=self.row_N[chosen_N])


class ProtocolCounts(BaseModel):
    """How much of a split a protocol can score: the first keys of eval.json and of `evaluation` in bundle.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    split: str
    queries: int
    index: int
    queries_without_match: int = 0
    labels_of_one_image: int = 0
    unlabelled: int = 0
    not_scored: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScoredQueries:
    """Retrieval scores, and the values of the Q queries that have a match, which paired intervals need.

    `row_Q`: manifest rows; `class_Q`: domain and label of each; `average_precision_Q`: in 0..1.
    """

    scores: RetrievalScores
    row_Q: Rows
    class_Q: tuple[tuple[str, str | None], ...]
    average_precision_Q: Float64Array


@dataclass(frozen=True, kw_only=True)
class RetrievalProtocol:
    """The queries and index images of one split, as rows of the manifest, and what of the split cannot be scored.

    `not_scored` is the reason where nothing can be scored, else None. `unlabelled` counts the split's images without a
    label, `queries_without_match` the queries that have no other image of their label and domain in the index, and
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
    unscored_rows: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    """Rows to embed that are neither query nor index image: a bench without labels still compares embeddings."""

    @classmethod
    def of_split(cls, manifest: Manifest, split: str) -> RetrievalProtocol:
        """The manifest's protocol for "val" or "test"; never an error, see `not_scored`."""
        rows = manifest.rows(split)
        unlabelled = sum(manifest.label[row] is None for row in rows)
        query = index = np.zeros(0, np.int64)
        reason: str | None = None
        if rows.size == 0:
            reason = f"the manifest has no {split} split"
        elif unlabelled == rows.size:
            reason = f"none of the {rows.size} images of the {split} split has a label"
        else:
            try:  # roles may leave no query or no index image
                query, index = manifest.evaluation(split)
            except UserError as error:
                reason = str(error)
        protocol = cls(
            manifest=manifest, split=split, query=query, index=index, unlabelled=unlabelled, not_scored=reason
        )
        # With the same rows: `restrict` counts queries without a match, and finds out where none has one.
        return protocol.restrict(query, index)

    @classmethod
    def of_first_scorable(cls, manifest: Manifest, *splits: str) -> RetrievalProtocol:
        """The protocol of the first split that can be scored.

        Where none can be scored: that of the first split with images, and `not_scored` gives the reason of each split.
        """
        protocols = [cls.of_split(manifest, split) for split in splits]
        for protocol in protocols:
            if protocol.not_scored is None:
                return protocol
        reason = "; ".join(f"{protocol.split}: {protocol.not_scored}" for protocol in protocols)
        # A bench without labels still compares the embeddings of these images.
        first = next((protocol for protocol in protocols if manifest.rows(protocol.split).size), protocols[0])
        return dataclasses.replace(first, not_scored=reason)

    def restrict(self, query: Rows, index: Rows) -> RetrievalProtocol:
        """The protocol with only these of its queries and index images; not scored where no query has a match."""
        manifest, reason = self.manifest, self.not_scored
        without_match = int(np.count_nonzero(~have_match(manifest, query, index)))
        labelled = [row for row in np.union1d(query, index).tolist() if manifest.label[row] is not None]
        # Images, not rows: one file may stand in several rows, for example as query and as index image.
        images = {(manifest.class_of(row), manifest.image_number[row]) for row in labelled}
        image_count = Counter(class_name for class_name, _ in images)
        labels_of_one_image = sum(count == 1 for count in image_count.values())
        if reason is None and without_match == query.size:
            reason = (
                f"none of its {query.size} queries has another image of its label and domain in the index "
                f"(classes of one image: {labels_of_one_image})"
            )
        return dataclasses.replace(
            self,
            query=query,
            index=index,
            queries_without_match=without_match,
            labels_of_one_image=labels_of_one_image,
            not_scored=reason,
        )

    @functools.cached_property
    def rows(self) -> Rows:
        """All rows to embed: queries, index and `unscored_rows`, each row once, ascending."""
        return np.union1d(np.union1d(self.query, self.index), self.unscored_rows)

    @property
    def files(self) -> list[str]:
        """The image file of each of `rows`."""
        return [self.manifest.files[row] for row in self.rows]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies the rows and bytes of queries and index images; the root folder and `repeat` do not count."""
        parts = [self.manifest.fingerprint_of(rows) for rows in (self.query, self.index)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]

    def score(self, query: EmbeddedRows, index: EmbeddedRows) -> ScoredQueries:
        """Scores the queries among the first embeddings, searched for in the index images among the second.

        Both may hold more or fewer rows than the protocol. Figures are None where no query or no index image is among
        them, or no query has a match. Embeddings that are not finite are left out, with a warning.
        """
        # A side may hold other rows too: queries and index images are usually embedded together, once.
        is_query_M = np.isin(query.row_N, self.query) & _are_finite(query.embedding_ND)
        is_index_N = np.isin(index.row_N, self.index) & _are_finite(index.embedding_ND)
        if not is_query_M.any() or not is_index_N.any():
            return ScoredQueries(
                scores=not_scored(int(np.count_nonzero(is_query_M))),
                row_Q=np.zeros(0, np.int64),
                class_Q=(),
                average_precision_Q=np.zeros(0),
            )
        manifest = self.manifest
        query_rows, index_rows = query.row_N[is_query_M], index.row_N[is_index_N]
        query_label = [manifest.label[row] or "" for row in query_rows]
        query_domain = [manifest.domain[row] for row in query_rows]
        values = query_values(
            query.embedding_ND[is_query_M],
            index.embedding_ND[is_index_N],
            query_label=query_label,
            # Index images may have no label: the empty one matches no query.
            index_label=[manifest.label[row] or "" for row in index_rows],
            query_domain=query_domain,
            index_domain=[manifest.domain[row] for row in index_rows],
            query_id=manifest.image_number[query_rows],
            index_id=manifest.image_number[index_rows],
        )
        value_QM, num_relevant_Q, _ = values
        has_match = num_relevant_Q > 0  # the others have no average precision that could be paired
        return ScoredQueries(
            scores=mean_scores(*values, query_label=query_label, query_domain=query_domain),
            row_Q=query_rows[has_match],
            class_Q=tuple(manifest.class_of(row) for row in query_rows[has_match].tolist()),
            average_precision_Q=value_QM[has_match, METRICS.index("map")],
        )

    def counts(self) -> ProtocolCounts:
        """The figures of this protocol that eval.json and bundle.json record."""
        return ProtocolCounts(
            split=self.split,
            queries=len(self.query),
            index=len(self.index),
            queries_without_match=self.queries_without_match,
            labels_of_one_image=self.labels_of_one_image,
            unlabelled=self.unlabelled,
            not_scored=self.not_scored,
        )

    def describe(self) -> str:
        """One line: what can be scored, and what cannot."""
        if self.not_scored is not None:
            return f"{self.split}: retrieval is not scored: {self.not_scored}"
        leave_one_out = np.array_equal(np.sort(self.query), np.sort(self.index))
        note = ", the same images (leave-one-out)" if leave_one_out else ""
        parts = [f"{self.split}: {len(self.query)} queries against {len(self.index)} index images{note}"]
        if self.queries_without_match:
            parts.append(
                f"queries without another image of their class in the index: {self.queries_without_match} "
                f"(classes of one image: {self.labels_of_one_image})"
            )
        if self.unlabelled:
            parts.append(f"images without a label: {self.unlabelled}")
        return "; ".join(parts)

    def log_coverage(self) -> None:
        """Logs, before any long work, what will be scored; as a warning where something cannot be."""
        is_partial = self.not_scored is not None or self.queries_without_match + self.unlabelled > 0
        log.log(logging.WARNING if is_partial else logging.INFO, "%s", self.describe())


def have_match(manifest: Manifest, query: Rows, index: Rows) -> BoolArray:
    """Which queries have an index image of their label and domain that is not the query's own image (Q,)."""
    images_of: dict[tuple[str, str | None], set[int]] = defaultdict(set)
    for row in index.tolist():
        images_of[manifest.class_of(row)].add(int(manifest.image_number[row]))
    images_of_query = ((images_of[manifest.class_of(row)], int(manifest.image_number[row])) for row in query.tolist())
    # More images than the query's own, if that is in the index.
    return np.array([len(images) > (image in images) for images, image in images_of_query], dtype=np.bool_)


def _are_finite(embedding_ND: FloatArray) -> BoolArray:
    finite_N: BoolArray = np.asarray(np.isfinite(embedding_ND).all(axis=1))
    if not finite_N.all():
        log.warning("left out: %d of %d embeddings hold NaN or infinity", (~finite_N).sum(), finite_N.size)
    return finite_N


def warn_if_collapsed(name: str, spread: Spread | None, protocol: RetrievalProtocol) -> None:
    """Logs a warning where nearly all embeddings of a protocol point the same way, so that scores mean little."""
    num_classes = len(protocol.manifest.class_names(protocol.rows)) or None
    if (warning := collapse_warning(name, spread, num_classes=num_classes)) is not None:
        log.warning("%s", warning)


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


def retention(student: ScoredQueries, teacher: ScoredQueries) -> Retention | None:
    """The student's mAP divided by the teacher's, over the queries that both were scored on.

    None where there are no such queries, or the teacher's mAP on them is 0.
    """
    # Paired by query, so that the difficulty of a query, which both share, does not widen the interval.
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
        ci95_classes=intervals.over_classes if len(set(class_Q)) > 1 else None,  # one class would have no width
    )
