"""Measures how much of the teacher's retrieval quality a file keeps, with that very file on the user's own images.

Symmetric: the student searches an index that it built itself. Asymmetric: it searches the teacher's index, so that a
server embeds the collection once, with the best network, and devices only embed their queries.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from edgeembed.arrays import UInt8Array
from edgeembed.bench.report_schema import ByIndex, CosineToTeacher, DataFacts, DomainCounts, ValueT
from edgeembed.data.manifest import Manifest, Rows
from edgeembed.device.embedding_space import shorten
from edgeembed.device.image_sources import decode_ahead
from edgeembed.device.images import ImageError
from edgeembed.device.runtimes import Session
from edgeembed.errors import UserError
from edgeembed.evaluation import EmbeddedRows, Retention, RetrievalProtocol, ScoredQueries, have_match, retention
from edgeembed.metrics import RetrievalScores
from edgeembed.spread import Spread, spread_of

log = logging.getLogger(__name__)

CACHE_BYTES = 1_500_000_000  # more decoded images than this are decoded again for each file

MOST_UNSCORED = 256  # images to embed of a data set that retrieval cannot be scored on


def choose_protocol(manifest: Manifest) -> RetrievalProtocol:
    """The test protocol; where test cannot be scored, the one of val, with a warning.

    Where neither can be, times and cosines are measured all the same, on up to `MOST_UNSCORED` images.
    """
    protocol = RetrievalProtocol.of_first_scorable(manifest, "test", "val")
    if protocol.not_scored is not None:
        rows = next(rows for split in ("test", "val", "train") if (rows := manifest.rows(split)).size)
        # Spread over the split: neighbouring rows are often of one class.
        sample = rows[:: max(1, len(rows) // MOST_UNSCORED)][:MOST_UNSCORED]
        protocol = dataclasses.replace(protocol, split=manifest.split[rows[0]], unscored_rows=sample)
        log.warning("retrieval is not scored (%s): times and cosines only", protocol.not_scored)
    elif protocol.split == "val":
        test = RetrievalProtocol.of_split(manifest, "test")
        log.warning("measuring on val, which training may have looked at: %s", test.describe())
    else:
        protocol.log_coverage()
    manifest.take(protocol.rows).require_files()  # a missing file is an error now, not after an hour
    return protocol


def describe_data(protocol: RetrievalProtocol, rows: Rows) -> DataFacts:
    """Counts for `data` of the report; `rows` are those of the protocol whose images could be read."""
    manifest = protocol.manifest
    query, index = np.intersect1d(protocol.query, rows), np.intersect1d(protocol.index, rows)
    return DataFacts(
        fingerprint=manifest.fingerprint,
        split=protocol.split,
        queries=len(query),
        index=len(index),
        labels=len(manifest.class_names(rows)),
        unreadable=len(protocol.rows) - len(rows),
        queries_without_match=int(np.count_nonzero(~have_match(manifest, query, index))),
        unlabelled=protocol.unlabelled,
        not_scored=protocol.not_scored,
        domains={
            domain: DomainCounts(
                queries=_count_domain(manifest, query, domain), index=_count_domain(manifest, index, domain)
            )
            for domain in sorted({manifest.domain[row] for row in rows})
        },
    )


def _count_domain(manifest: Manifest, rows: Rows, domain: str) -> int:
    return sum(manifest.domain[row] == domain for row in rows)


class DecodedFiles:
    """Images resized to (height, width), in the order of the files; decoded once and kept where they fit in memory."""

    def __init__(self, files: Sequence[str], height: int, width: int) -> None:
        self.files, self.height, self.width = files, height, width
        self.unreadable: set[int] = set()
        self.kept_NHWC: UInt8Array | None = None
        if len(files) * height * width * 3 <= CACHE_BYTES:
            # Images that cannot be read leave their place undefined; `__iter__` skips it.
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
        for image, decoded in enumerate(decode_ahead(self.files, lambda _: (self.height, self.width))):
            if not isinstance(decoded, ImageError):
                yield image, decoded
            # Warned of once, though the files may be decoded again for every model.
            elif image not in self.unreadable:
                self.unreadable.add(image)
                log.warning("left out: %s", decoded)


def embed_with_session(session: Session, decoded: DecodedFiles, row_N: Rows, *, dim: int) -> EmbeddedRows:
    """Embeds one image at a time, as on a device. `row_N`: the manifest row of each file, readable or not.

    Raises ValueError for an output that is not what the bundle promises.
    """
    embeddings, positions = [], []
    for position, pixels_HWC in decoded:
        output_1D = session.run(pixels_HWC[None])
        if output_1D.shape != (1, dim) or not np.isfinite(output_1D).all():
            raise ValueError(f"gives shape {output_1D.shape} or values that are not finite, bundle.json says ({dim},)")
        embeddings.append(output_1D)
        positions.append(position)
    embedding_MD = np.concatenate(embeddings) if embeddings else np.zeros((0, dim), np.float32)
    return EmbeddedRows(embedding_ND=embedding_MD.astype(np.float32, copy=False), row_N=row_N[positions])


def common_rows(protocol: RetrievalProtocol, embedded: Sequence[EmbeddedRows]) -> Rows:
    """The rows of the protocol that every model could embed, ascending: all are scored on the same images.

    Raises UserError where there are none.
    """
    rows: Rows = reduce(np.intersect1d, [each.row_N for each in embedded])
    if not rows.size:
        raise UserError(
            f"none of the {len(protocol.rows)} evaluation images can be decoded: run `edgeembed data check`"
        )
    return rows


@dataclass(frozen=True, kw_only=True)
class TeacherReference:
    """What students are compared with: the teacher's embeddings, and its scores in its own index."""

    embedded: EmbeddedRows
    scored: ScoredQueries


@dataclass(frozen=True, kw_only=True)
class RetrievalQuality:
    """A model's retrieval in its own index (symmetric) and in the teacher's (asymmetric).

    `asymmetric`, `retention` (mAP as a share of the teacher's in its own index) and `cosine_to_teacher` are None
    without a teacher.
    """

    symmetric: ScoredQueries
    asymmetric: ScoredQueries | None = None
    retention: ByIndex[Retention] | None = None
    cosine_to_teacher: CosineToTeacher | None = None
    spread: Spread | None

    @property
    def scores(self) -> ByIndex[RetrievalScores]:
        asymmetric = None if self.asymmetric is None else self.asymmetric.scores
        return ByIndex[RetrievalScores](symmetric=self.symmetric.scores, asymmetric=asymmetric)

    def map_retention(self, part: Callable[[Retention], ValueT | None]) -> ByIndex[ValueT] | None:
        """A part of `retention`, such as its value or an interval, for each index."""
        return None if self.retention is None else self.retention.map(part)


def measure_quality(
    protocol: RetrievalProtocol, student: EmbeddedRows, rows: Rows, teacher: TeacherReference | None = None
) -> RetrievalQuality:
    """A model's figures over `rows`, which every model could embed.

    A student with a shorter embedding searches the teacher's index shortened to the same dimension.
    """
    student = student.take(rows)
    symmetric = protocol.score(student, student)
    spread = spread_of(student.embedding_ND)
    if teacher is None:
        return RetrievalQuality(symmetric=symmetric, spread=spread)
    # The student's queries are compared with the teacher's embeddings of the index images.
    searched = teacher.embedded.take(rows)
    dim = student.embedding_ND.shape[1]
    if dim != searched.embedding_ND.shape[1]:
        searched = EmbeddedRows(embedding_ND=shorten(searched.embedding_ND, dim), row_N=searched.row_N)
    asymmetric = protocol.score(student, searched)
    # Both sides hold the same rows in the same order.
    cosine_N = np.einsum("nd,nd->n", student.embedding_ND, searched.embedding_ND)
    p1, p50 = (float(value) for value in np.percentile(cosine_N, (1, 50)))
    return RetrievalQuality(
        symmetric=symmetric,
        asymmetric=asymmetric,
        retention=ByIndex[Retention](
            symmetric=retention(symmetric, teacher.scored), asymmetric=retention(asymmetric, teacher.scored)
        ),
        cosine_to_teacher=CosineToTeacher(p1=p1, p50=p50),
        spread=spread,
    )
