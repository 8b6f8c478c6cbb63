"""How much of the teacher's retrieval a file keeps, measured with that very file on the user's own images.

Symmetric: the student searches an index that it built itself. Asymmetric: it searches the teacher's index, so that a
server embeds the collection once, with the best network, and devices only embed their queries.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeembed.arrays import BoolArray, FloatArray, UInt8Array
from edgeembed.data.manifest import Manifest, Rows
from edgeembed.device.embedding_space import shorten
from edgeembed.device.image_sources import decode_ahead
from edgeembed.device.images import ImageError
from edgeembed.device.runtimes import Session
from edgeembed.errors import UserError
from edgeembed.evaluation import (
    EvaluationSet,
    Retention,
    ScoredQueries,
    choose_split,
    have_match,
    log_scope,
    plan_evaluation,
    retention,
    score_queries,
)
from edgeembed.spread import Spread, spread_of

log = logging.getLogger(__name__)

CACHE_BYTES = 1_500_000_000  # decoded squares above it are decoded again for each file

MOST_UNSCORED = 256  # images of a data set that retrieval cannot be scored on


def describe_data(evaluation: EvaluationSet, readable_N: BoolArray) -> dict[str, Any]:
    """`data` of the report; queries and index are counted as they were scored, without unreadable images."""
    manifest, scored = evaluation.manifest, evaluation.rows[readable_N]
    query, index = np.intersect1d(evaluation.query, scored), np.intersect1d(evaluation.index, scored)
    return {
        "fingerprint": manifest.fingerprint,
        "split": evaluation.split,
        "queries": len(query),
        "index": len(index),
        "labels": len(manifest.class_names(scored)),
        "unreadable": int(np.count_nonzero(~readable_N)),
        "queries_without_match": int(np.count_nonzero(~have_match(manifest, query, index))),
        "unlabelled": evaluation.unlabelled,
        "not_scored": evaluation.not_scored,
        "domains": {
            domain: {"queries": _count(manifest, query, domain), "index": _count(manifest, index, domain)}
            for domain in sorted({manifest.domain[row] for row in scored})
        },
    }


def _count(manifest: Manifest, rows: Rows, domain: str) -> int:
    return sum(manifest.domain[row] == domain for row in rows)


def evaluation_set(manifest: Manifest) -> EvaluationSet:
    """The test protocol; where test cannot be scored, the one of val, with a notice.

    Where neither can be, times and cosines are measured all the same, on up to `MOST_UNSCORED` images.
    """
    chosen = choose_split(manifest, "test", "val")
    if chosen.not_scored is not None:
        rows = next(rows for split in ("test", "val", "train") if (rows := manifest.rows(split)).size)
        spread_out = rows[:: max(1, len(rows) // MOST_UNSCORED)][:MOST_UNSCORED]
        chosen = dataclasses.replace(chosen, split=manifest.split[rows[0]], others=spread_out)
        log.warning("retrieval is not scored (%s): times and cosines only", chosen.not_scored)
    elif chosen.split == "val":
        log.warning(
            "measuring on val, which training may have looked at: %s", plan_evaluation(manifest, "test").describe()
        )
    else:
        log_scope(chosen)
    manifest.take(chosen.rows).require_files()
    return chosen


class DecodedFiles:
    """Files as (height, width) squares, in order; decoded once and kept where they fit in memory."""

    def __init__(self, files: Sequence[str], height: int, width: int) -> None:
        self.files, self.height, self.width = files, height, width
        self.unreadable: set[int] = set()
        self.kept_NHWC: UInt8Array | None = None
        if len(files) * height * width * 3 <= CACHE_BYTES:
            memory_NHWC = np.empty((len(files), height, width, 3), np.uint8)
            for image, pixels_HWC in self._decode():
                memory_NHWC[image] = pixels_HWC
            self.kept_NHWC = memory_NHWC

    def __iter__(self) -> Iterator[tuple[int, UInt8Array]]:
        """Position and pixels (H, W, 3) of every file that can be read."""
        if self.kept_NHWC is None:
            yield from self._decode()
            return
        for image, pixels_HWC in enumerate(self.kept_NHWC):
            if image not in self.unreadable:
                yield image, pixels_HWC

    def _decode(self) -> Iterator[tuple[int, UInt8Array]]:
        for image, found in enumerate(decode_ahead(self.files, lambda _: (self.height, self.width))):
            if not isinstance(found, ImageError):
                yield image, found
            elif image not in self.unreadable:
                self.unreadable.add(image)
                log.warning("left out: %s", found)


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """One model's embeddings of all evaluation rows; zeros where the image could not be read."""

    embedding_ND: FloatArray
    readable_N: BoolArray


def embed_with_session(session: Session, decoded: DecodedFiles, *, dim: int) -> Embedded:
    """One image at a time, as on a device. Raises ValueError for an output that is not what the bundle promises."""
    embedding_ND = np.zeros((len(decoded.files), dim), np.float32)
    readable_N = np.zeros(len(decoded.files), np.bool_)
    for image, pixels_HWC in decoded:
        output_1D = session.run(pixels_HWC[None])
        if output_1D.shape != (1, dim) or not np.isfinite(output_1D).all():
            raise ValueError(f"gives shape {output_1D.shape} or values that are not finite, bundle.json says ({dim},)")
        embedding_ND[image], readable_N[image] = output_1D[0], True
    return Embedded(embedding_ND=embedding_ND, readable_N=readable_N)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A model's retrieval in its own index (symmetric) and in the teacher's (asymmetric), beside the teacher's.

    `asymmetric`, `retention` (mAP as a share of the teacher's) and `cosine_to_teacher` are None without a teacher.
    """

    symmetric: ScoredQueries
    asymmetric: ScoredQueries | None = None
    retention: dict[str, Retention | None] | None = None
    cosine_to_teacher: dict[str, float] | None = None
    spread: Spread | None

    @property
    def retrieval(self) -> dict[str, Any]:
        """`retrieval` of report.json."""
        return {
            "symmetric": dataclasses.asdict(self.symmetric.scores),
            "asymmetric": dataclasses.asdict(self.asymmetric.scores) if self.asymmetric else None,
        }

    def row_facts(self) -> dict[str, Any]:
        """The keys of a row of report.json that hold the model's quality."""
        return {
            "retrieval": self.retrieval,
            "retention": self._retention("value"),
            "retention_ci95": self._retention("ci95"),
            "retention_ci95_queries": self._retention("ci95_queries"),
            "retention_ci95_classes": self._retention("ci95_classes"),
            "cosine_to_teacher": self.cosine_to_teacher,
            "spread": self.spread,
        }

    def _retention(self, name: str) -> dict[str, Any] | None:
        if self.retention is None:
            return None
        return {kind: None if share is None else getattr(share, name) for kind, share in self.retention.items()}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What students are compared with: the teacher's embeddings, and its scores in its own index."""

    embedded: Embedded
    scored: ScoredQueries


def judge(
    evaluation: EvaluationSet, student: Embedded, readable_N: BoolArray, teacher: Reference | None = None
) -> Quality:
    """A model's figures over the rows that every model could read; one of a short space searches a shortened index."""
    symmetric = _score(evaluation, student, student, readable_N)
    spread = spread_of(student.embedding_ND[readable_N])
    if teacher is None:
        return Quality(symmetric=symmetric, spread=spread)
    searched_ND = teacher.embedded.embedding_ND
    if (dim := student.embedding_ND.shape[1]) != searched_ND.shape[1]:
        searched_ND = shorten(searched_ND, dim)
    searched = Embedded(embedding_ND=searched_ND, readable_N=teacher.embedded.readable_N)
    asymmetric = _score(evaluation, student, searched, readable_N)
    cosine_N = np.einsum("nd,nd->n", student.embedding_ND[readable_N], searched_ND[readable_N])
    p1, p50 = (float(value) for value in np.percentile(cosine_N, (1, 50)))
    return Quality(
        symmetric=symmetric,
        asymmetric=asymmetric,
        retention={
            "symmetric": retention(symmetric, teacher.scored),
            "asymmetric": retention(asymmetric, teacher.scored),
        },
        cosine_to_teacher={"p1": p1, "p50": p50},
        spread=spread,
    )


def readable_by_all(embedded: Sequence[Embedded]) -> BoolArray:
    """Every model is scored on the same images. Raises UserError where none is left."""
    readable_N: BoolArray = np.logical_and.reduce([one.readable_N for one in embedded])
    if not readable_N.any():
        raise UserError(f"none of the {readable_N.size} evaluation images can be decoded: run `edgeembed data check`")
    return readable_N


def _score(evaluation: EvaluationSet, searching: Embedded, searched: Embedded, readable_N: BoolArray) -> ScoredQueries:
    rows = evaluation.rows[readable_N]
    return score_queries(
        searching.embedding_ND[readable_N],
        rows,
        searched.embedding_ND[readable_N],
        rows,
        evaluation.manifest,
        evaluation.query,
        evaluation.index,
    )
