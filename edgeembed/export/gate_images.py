"""Reads the real images that calibration and the gate of an export use."""

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
from edgeembed.export.gate import MIN_CLASSES
from edgeembed.export.gate_sample import sample_classes
from edgeembed.export.recipe import ExportRecipe
from edgeembed.metrics import RetrievalScores
from edgeembed.model_json import ModelOrigin
from edgeembed.progress import stage

log = logging.getLogger(__name__)

# Enough that no single image decides the 1st percentile of the cosines.
PARITY_IMAGES = 256
MIN_IMAGES = 64
FIRST_SHARE = 0.25
"""Share of `gate.max_macs` for the first sample: most files lose little, and small losses need no more images."""


@dataclass(frozen=True, kw_only=True)
class GateImages:
    """Decoded images, (N, H, W, 3) uint8: for calibration, for the choice between calibration methods, for the gate.

    `pixels_NHWC` are the gate's, of the rows `rows`; the first `num_parity` are compared with torch one by one.
    `evaluation` is a sample of the whole protocol with at most `num_images` images; `enlarged` samples up to
    `max_images`.
    """

    calibration_NHWC: UInt8Array
    selection_NHWC: UInt8Array
    pixels_NHWC: UInt8Array
    num_parity: int
    rows: Rows
    evaluation: RetrievalProtocol
    protocol: RetrievalProtocol
    num_images: int
    max_images: int

    def enlarged(self, num_queries: int) -> GateImages | None:
        """Returns the same images and as many new ones behind them.

        None where even `max_images` images have fewer than `num_queries` matched queries, or too few classes to show
        that a loss is within its limit. Where val is too small, test is not added: it stays held out.
        """
        num_images = min(2 * self.num_images, self.max_images)
        # First find out whether the largest sample could decide: otherwise doubling would be in vain.
        largest = sample_classes(self.protocol, self.max_images)
        evaluation = sample_classes(self.protocol, num_images)
        new_rows = np.setdiff1d(evaluation.rows, self.evaluation.rows)
        if len(new_rows) == 0 or len(largest.query) - largest.queries_without_match < num_queries:
            return None
        if len({largest.manifest.class_of(row) for row in largest.query.tolist()}) < MIN_CLASSES:
            return None
        height = self.pixels_NHWC.shape[1]
        with stage(f"reading {len(new_rows)} more images of the {evaluation.split} protocol"):
            pixels_NHWC, kept = decode_rows(evaluation.manifest, new_rows, height)
        return dataclasses.replace(
            self,
            pixels_NHWC=np.concatenate([self.pixels_NHWC, pixels_NHWC]),
            # New rows come last, so that embeddings of the earlier ones are kept.
            rows=np.concatenate([self.rows, new_rows[kept]]),
            evaluation=self.protocol.restrict(
                np.union1d(self.evaluation.query, evaluation.query),
                np.union1d(self.evaluation.index, evaluation.index),
            ),
            num_images=num_images,
        )

    def score(self, embedding_ND: FloatArray) -> ScoredQueries | None:
        """Scores a file's embeddings, (N, D), on the gate's split; None where nothing can be scored."""
        # Embeddings that are not finite have no ranking.
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


def read_gate_images(
    size_px: int, macs: int, origin: ModelOrigin, data: Path | None, recipe: ExportRecipe
) -> GateImages:
    """Reads calibration images from train, and gate images from val where it can be scored, else from test.

    Their number follows from `macs`, the multiply-accumulates of the network for one image, and from `gate.max_macs`; a
    quarter is taken first (see `GateImages.enlarged`). Where neither split can be scored, the gate's images are only
    compared with torch. Raises UserError without a manifest, or where no image of it can be read.
    """
    known = origin.data and origin.data.manifest
    if data is None and not known:
        raise UserError("the run does not record its data: give a manifest with --data")
    manifest = read_manifest(data or Path(str(known)))
    train = manifest.rows("train")
    protocol = RetrievalProtocol.of_first_scorable(manifest, "val", "test")
    # The images that the budget of multiply-accumulates pays for, in all and at first.
    max_images, first_images = (
        max(MIN_IMAGES, int(share * recipe.gate.max_macs / macs)) for share in (1.0, FIRST_SHARE)
    )
    max_images, num_images = (min(recipe.gate.max_images, count) for count in (max_images, first_images))
    evaluation = sample_classes(protocol, num_images)
    if evaluation.not_scored is not None:
        log.warning("the gate decides by cosine alone, retrieval is not scored: %s", evaluation.not_scored)
    num_parity = min(PARITY_IMAGES, num_images)
    gate_rows = evaluation.rows
    # Nothing can be scored: any images will do for the comparison with torch.
    if gate_rows.size == 0:
        available = train if train.size else np.arange(len(manifest))
        gate_rows = available[spread_positions(len(available), num_parity)]
    # The images that are compared with torch come first; they are spread over all classes.
    first = spread_positions(len(gate_rows), num_parity)
    rows = np.concatenate([gate_rows[first], np.delete(gate_rows, first)])
    # Never from the gate's images where there is a train split: a file must not be fitted to its own test.
    num_calibration = min(recipe.int8.calibration_images, max(MIN_IMAGES, first_images // 4))
    calibration, selection = split_calibration(
        train if train.size else gate_rows, num_calibration, recipe.int8.choosing_images
    )
    with stage(f"reading {len(rows)} images of the {evaluation.split} protocol and {len(calibration)} to calibrate"):
        pixels_NHWC, kept = require_readable(*decode_rows(manifest, rows, size_px), rows)
        calibration_NHWC, _ = require_readable(*decode_rows(manifest, calibration, size_px), calibration)
        selection_NHWC, _ = require_readable(*decode_rows(manifest, selection, size_px), selection)
    return GateImages(
        calibration_NHWC=calibration_NHWC,
        selection_NHWC=selection_NHWC,
        pixels_NHWC=pixels_NHWC,
        num_parity=min(num_parity, len(pixels_NHWC)),
        rows=rows[kept],
        evaluation=evaluation,
        protocol=protocol,
        num_images=num_images,
        max_images=max_images,
    )


def split_calibration(rows: Rows, num_calibration: int, num_selection: int) -> tuple[Rows, Rows]:
    """Draws rows to calibrate on, and others to choose a method on; the same for both where there are too few."""
    drawn = rows[spread_positions(len(rows), num_calibration + num_selection)]
    if len(drawn) <= num_selection:
        return drawn, drawn
    # Of few rows, most go to the calibration.
    selection = spread_positions(len(drawn), min(num_selection, len(drawn) // 4 or 1))
    return np.delete(drawn, selection), drawn[selection]


def spread_positions(size: int, count: int) -> Rows:
    """Returns up to `count` positions that lie evenly spread over 0..size-1."""
    return np.unique(np.linspace(0, size - 1, min(size, count)).round().astype(np.int64))


def decode_rows(manifest: Manifest, rows: Rows, size_px: int) -> tuple[UInt8Array, Rows]:
    """Pixels (M, size, size, 3) of the M rows that can be decoded, and their positions (M,) in `rows`."""
    return decode_all([manifest.files[row] for row in rows], size_px, size_px)


def require_readable(pixels_NHWC: UInt8Array, kept: Rows, rows: Rows) -> tuple[UInt8Array, Rows]:
    """Passes on what `decode_rows` returned. Raises UserError where it could read none of the rows."""
    if len(kept) == 0:
        raise UserError(f"none of {len(rows)} images of the manifest can be read: give another manifest with --data")
    return pixels_NHWC, kept
