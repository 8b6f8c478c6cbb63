"""The real images that calibration and the gate of an export use."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeembed.arrays import FloatArray, UInt8Array
from edgeembed.data.manifest import Manifest, Rows, read_manifest
from edgeembed.device.image_sources import decode_all
from edgeembed.errors import UserError
from edgeembed.evaluation import EmbeddedRows, RetrievalProtocol, ScoredQueries
from edgeembed.export.gate import LEAST_CLASSES
from edgeembed.export.gate_sample import sample_classes
from edgeembed.export.recipe import ExportRecipe
from edgeembed.metrics import RetrievalScores
from edgeembed.model_json import ModelOrigin
from edgeembed.progress import stage

log = logging.getLogger(__name__)

PARITY_IMAGES = 256
LEAST_IMAGES = 64
FIRST_SHARE = 0.25  # of gate.max_macs: small losses need no more images, and most files lose little


@dataclass(frozen=True, kw_only=True)
class GateImages:
    """Decoded images, (N, H, W, 3) uint8, for calibration, for the choice between calibrations, and for the gate.

    `pixels_NHWC` are those of the gate; the first `num_parity` are compared with torch one by one. `evaluation` is a
    sample of the protocol `planned` with at most `num_taken` images. `grown` may enlarge it to `most_images`.
    """

    calibration_NHWC: UInt8Array
    choosing_NHWC: UInt8Array
    pixels_NHWC: UInt8Array
    num_parity: int
    rows: Rows
    evaluation: RetrievalProtocol
    planned: RetrievalProtocol
    num_taken: int
    most_images: int

    def grown(self, num_queries: int) -> GateImages | None:
        """The same with twice as many images, the new ones last.

        None where even `most_images` images have fewer than `num_queries` matched queries, or too few classes to show
        that a loss is within its limit. All images are of one split: where val is too small, test stays held out.
        """
        num_taken = min(2 * self.num_taken, self.most_images)
        most = sample_classes(self.planned, self.most_images)
        evaluation = sample_classes(self.planned, num_taken)
        more = np.setdiff1d(evaluation.rows, self.evaluation.rows)
        if len(more) == 0 or len(most.query) - most.queries_without_match < num_queries:
            return None
        if len({most.manifest.class_of(row) for row in most.query.tolist()}) < LEAST_CLASSES:
            return None
        height = self.pixels_NHWC.shape[1]
        with stage(f"reading {len(more)} more images of the {evaluation.split} protocol"):
            pixels_NHWC, kept = decode_rows(evaluation.manifest, more, height)
        return dataclasses.replace(
            self,
            pixels_NHWC=np.concatenate([self.pixels_NHWC, pixels_NHWC]),
            rows=np.concatenate([self.rows, more[kept]]),
            evaluation=self.planned.restrict(
                np.union1d(self.evaluation.query, evaluation.query),
                np.union1d(self.evaluation.index, evaluation.index),
            ),
            num_taken=num_taken,
        )

    def score(self, embedding_ND: FloatArray) -> ScoredQueries | None:
        """Retrieval of a file's embeddings, (N, D), on the gate's split; None where nothing can be scored."""
        if self.evaluation.not_scored is not None or not np.isfinite(embedding_ND).all():
            return None
        embedded = EmbeddedRows(embedding_ND=embedding_ND, row_N=self.rows)
        scored = self.evaluation.score(embedded, embedded)
        return None if scored.scores.map is None else scored

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


def gate_images(size_px: int, macs: int, origin: ModelOrigin, data: Path | None, recipe: ExportRecipe) -> GateImages:
    """Calibration images from train, gate images from val where it can be scored, else from test.

    `macs`, multiply-accumulates of the network for one image, and `gate.max_macs` give their number; a quarter of it is
    taken at first (see `GateImages.grown`). Where neither split can be scored, images are compared with torch alone.
    Raises UserError without a manifest, or where no image of it can be read.
    """
    known = origin.data and origin.data.manifest
    if data is None and not known:
        raise UserError("the run does not say which data it saw: give a manifest with --data")
    manifest = read_manifest(data or Path(str(known)))
    train = manifest.rows("train")
    planned = RetrievalProtocol.of_first_scorable(manifest, "val", "test")
    most_images, num_first = (
        max(LEAST_IMAGES, int(share * recipe.gate.max_macs / macs)) for share in (1.0, FIRST_SHARE)
    )
    most_images = min(recipe.gate.max_images, most_images)
    num_taken = min(recipe.gate.max_images, num_first)
    evaluation = sample_classes(planned, num_taken)
    if evaluation.not_scored is not None:
        log.warning("the gate judges by cosine alone, retrieval is not scored: %s", evaluation.not_scored)
    num_parity = min(PARITY_IMAGES, num_taken)
    judged = evaluation.rows
    if judged.size == 0:
        there = train if train.size else np.arange(len(manifest))
        judged = there[sample_evenly(len(there), num_parity)]
    # Images spread over all of the gate's come first: those are compared with torch.
    spread = sample_evenly(len(judged), num_parity)
    rows = np.concatenate([judged[spread], np.delete(judged, spread)])
    wanted = min(recipe.int8.calibration_images, max(LEAST_IMAGES, num_first // 4))
    calibration, choosing = to_calibrate(train if train.size else judged, wanted, recipe.int8.choosing_images)
    with stage(f"reading {len(rows)} images of the {evaluation.split} protocol and {len(calibration)} to calibrate"):
        pixels_NHWC, kept = require_readable(*decode_rows(manifest, rows, size_px), rows)
        calibration_NHWC, _ = require_readable(*decode_rows(manifest, calibration, size_px), calibration)
        choosing_NHWC, _ = require_readable(*decode_rows(manifest, choosing, size_px), choosing)
    return GateImages(
        calibration_NHWC=calibration_NHWC,
        choosing_NHWC=choosing_NHWC,
        pixels_NHWC=pixels_NHWC,
        num_parity=min(num_parity, len(pixels_NHWC)),
        rows=rows[kept],
        evaluation=evaluation,
        planned=planned,
        num_taken=num_taken,
        most_images=most_images,
    )


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


def decode_rows(manifest: Manifest, rows: Rows, size_px: int) -> tuple[UInt8Array, Rows]:
    """Pixels (M, size, size, 3) of the M rows that can be decoded, and their positions (M,) in `rows`."""
    return decode_all([manifest.files[row] for row in rows], size_px, size_px)


def require_readable(pixels_NHWC: UInt8Array, kept: Rows, rows: Rows) -> tuple[UInt8Array, Rows]:
    if len(kept) == 0:
        raise UserError(f"none of {len(rows)} images of the manifest can be read: give another manifest with --data")
    return pixels_NHWC, kept
