"""The real images that an export is calibrated and judged on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeembed.data.manifest import Manifest, Rows, read_manifest
from edgeembed.errors import UserError
from edgeembed.evaluation import EvaluationSet, FloatArray, choose_split, protocol, restrict, score_rows
from edgeembed.export.gate import AveragePrecisions
from edgeembed.export.recipe import ExportRecipe
from edgeembed.images import ImageError, UInt8Array, load_pixels
from edgeembed.metrics import METRICS, RetrievalScores, query_values
from edgeembed.progress import stage

log = logging.getLogger(__name__)

PARITY_IMAGES = 256
LEAST_IMAGES = 64
INDEX_SHARE = 0.75  # of the judged images, where there are more than can be paid for


@dataclass(frozen=True, kw_only=True)
class GateImages:
    """Decoded images, (N, H, W, 3): to take ranges from, to choose between ranges, and to judge on.

    The first `num_parity` of those to judge on are compared with torch one by one.
    """

    calibration_NHWC: UInt8Array
    choosing_NHWC: UInt8Array
    pixels_NHWC: UInt8Array
    num_parity: int
    rows: Rows
    evaluation: EvaluationSet

    def score(self, embedding_ND: FloatArray) -> RetrievalScores | None:
        """Retrieval of a file's embeddings on the gate's split; None where nothing can be scored."""
        if self.evaluation.not_scored is not None or not np.isfinite(embedding_ND).all():
            return None
        manifest, query, index = self.evaluation.manifest, self.evaluation.query, self.evaluation.index
        scores = score_rows(embedding_ND, self.rows, embedding_ND, self.rows, manifest, query, index)
        return None if scores.map is None else scores

    def average_precisions(self, embedding_ND: FloatArray) -> AveragePrecisions | None:
        """Average precision of each query that has a match (Q,); None where there is nothing to score."""
        if self.score(embedding_ND) is None:
            return None
        evaluation = self.evaluation
        as_query, as_index = np.isin(self.rows, evaluation.query), np.isin(self.rows, evaluation.index)
        value_QM, num_relevant_Q, _ = query_values(
            embedding_ND[as_query],
            embedding_ND[as_index],
            **protocol(evaluation.manifest, self.rows[as_query], self.rows[as_index]),
        )
        average_precision_Q: AveragePrecisions = value_QM[num_relevant_Q > 0, METRICS.index("map")]
        return average_precision_Q

    def summary(self, scores: RetrievalScores) -> dict[str, Any]:
        """`retrieval` of bundle.json."""
        return {
            "split": self.evaluation.split,
            "queries": scores.queries,
            "index": int(np.isin(self.rows, self.evaluation.index).sum()),
            "map": scores.map,
            "recall_at_1": scores.recall_at_1,
            "mp_at_5": scores.mp_at_5,
            "ci95": {"map": scores.ci95["map"]},
            "chance": {"map": scores.chance["map"]},
        }


def gate_images(size_px: int, macs: int, facts: dict[str, Any], data: Path | None, recipe: ExportRecipe) -> GateImages:
    """Calibrates on train, judges on val where it can be scored, else on test; `macs` of an image decide on how many.

    Where neither can be, embeddings of training images are compared and nothing is scored.
    """
    known = (facts.get("data") or {}).get("manifest")
    if data is None and not known:
        raise UserError("the run does not say which data it saw: give a manifest with --data")
    manifest = read_manifest(data or Path(str(known)))
    train = manifest.rows("train")
    planned = choose_split(manifest, "val", "test")
    paid_for = max(LEAST_IMAGES, int(recipe.gate.max_macs / macs))
    most = min(recipe.gate.max_images, paid_for)
    evaluation = restrict(planned, *within(planned.query, planned.index, most))
    if evaluation.not_scored is not None:
        log.warning("the gate judges by cosine alone, retrieval is not scored: %s", evaluation.not_scored)
    num_parity = min(PARITY_IMAGES, most)
    judged = evaluation.rows
    if judged.size == 0:
        there = train if train.size else np.arange(len(manifest))
        judged = there[sample_evenly(len(there), num_parity)]
    # Parity is taken on images spread over all that are judged; they come first.
    spread = sample_evenly(len(judged), num_parity)
    rows = np.concatenate([judged[spread], np.delete(judged, spread)])
    wanted = min(recipe.int8.calibration_images, max(LEAST_IMAGES, paid_for // 4))
    calibration, choosing = to_calibrate(train if train.size else judged, wanted, recipe.int8.choosing_images)
    with stage(f"reading {len(rows)} images of the {evaluation.split} protocol and {len(calibration)} to calibrate"):
        pixels_NHWC, kept = decode(manifest, rows, size_px)
        calibration_NHWC, _ = decode(manifest, calibration, size_px)
        choosing_NHWC, _ = decode(manifest, choosing, size_px)
    return GateImages(
        calibration_NHWC=calibration_NHWC,
        choosing_NHWC=choosing_NHWC,
        pixels_NHWC=pixels_NHWC,
        num_parity=min(num_parity, len(pixels_NHWC)),
        rows=rows[kept],
        evaluation=evaluation,
    )


def within(query: Rows, index: Rows, most: int) -> tuple[Rows, Rows]:
    """At most that many queries and index images, spread evenly; leave-one-out stays it."""
    if len(np.union1d(query, index)) <= most:
        return query, index
    if np.array_equal(query, index):
        chosen = query[sample_evenly(len(query), most)]
        return chosen, chosen
    num_queries = min(len(query), max(int((1 - INDEX_SHARE) * most), most - len(index)))
    query = query[sample_evenly(len(query), num_queries)]
    return query, index[sample_evenly(len(index), most - num_queries)]


def to_calibrate(rows: Rows, wanted: int, choosing: int) -> tuple[Rows, Rows]:
    """Rows to take ranges from, and others to choose between ranges (the same where there are too few)."""
    drawn = rows[sample_evenly(len(rows), wanted + choosing)]
    if len(drawn) <= choosing:
        return drawn, drawn
    apart = sample_evenly(len(drawn), min(choosing, len(drawn) // 4 or 1))
    return np.delete(drawn, apart), drawn[apart]


def sample_evenly(count: int, wanted: int) -> Rows:
    """`wanted` positions spread over 0..count-1."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))


def decode(manifest: Manifest, rows: Rows, size_px: int) -> tuple[UInt8Array, Rows]:
    """(M, H, W, 3) and the positions of the M rows that could be read."""
    pixels, kept = [], []
    for position, row in enumerate(rows):
        try:
            pixels.append(load_pixels(manifest.files[row], size_px, size_px))
            kept.append(position)
        except ImageError as error:
            log.warning("skipped: %s", error)
    if not pixels:
        raise UserError(f"none of {len(rows)} images of the manifest can be read: give another manifest with --data")
    return np.stack(pixels), np.array(kept, dtype=np.int64)
