"""What the figures of an export are compared with: a random ranking, an untrained network, the spread of embeddings."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import torch

from edgeembed.arrays import FloatArray, UInt8Array
from edgeembed.errors import UserError
from edgeembed.evaluation import EvaluationSet, choose_split, score_queries
from edgeembed.export.checks import BATCH
from edgeembed.export.gate_images import GateImages
from edgeembed.metrics import RetrievalScores
from edgeembed.network.model import Network
from edgeembed.network.untrained import untrained_network
from edgeembed.progress import stage
from edgeembed.spread import collapse_warning, is_collapsed, spread_of
from edgeembed.training.embed import embed_files

log = logging.getLogger(__name__)

MOST_MACS = 1e12
"""Of an untrained network on the images that the bench will measure on: minutes on one core, paid once for all."""


def run_torch(model: Network, pixels_NHWC: UInt8Array) -> FloatArray:
    """(N, D) of the network itself."""
    with torch.inference_mode():
        batches = torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2).split(BATCH)
        return np.concatenate([model(batch).numpy() for batch in batches])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baselines:
    """`untrained` holds one entry for each evaluation set, as in bundle.json, that of the gate's images first."""

    evaluation: EvaluationSet
    untrained: list[dict[str, Any]]
    spread: dict[str, Any] | None
    collapsed: bool

    @property
    def untrained_map(self) -> float | None:
        """On the gate's images."""
        first = next((one for one in self.untrained if one["fingerprint"] == self.evaluation.fingerprint), None)
        return None if first is None else first["figures"]["map"]

    def facts(self, scores: RetrievalScores | None) -> dict[str, Any]:
        """`evaluation` of bundle.json; `scores` are those of any file, whose chance is that of all."""
        reason = self.evaluation.not_scored
        if reason is None and scores is None:
            reason = "none of the queries whose images can be read has a match"
        return {
            **self.evaluation.counts(),
            "fingerprint": self.evaluation.fingerprint,
            "not_scored": reason,
            "chance": None if scores is None else scores.chance,
            "untrained": self.untrained,
            "spread": self.spread,
            "collapsed": self.collapsed,
        }


def measure_baselines(model: Network, images: GateImages, reference_ND: FloatArray, macs: int) -> Baselines:
    """Embeds the gate's images with an untrained network, and those of the bench where they cost little.

    `reference_ND`: the model's own embeddings of the first images; a collapsed space is logged.
    """
    evaluation = images.evaluation
    num_classes = len(evaluation.manifest.class_names(images.rows)) if evaluation.not_scored is None else None
    spread = spread_of(reference_ND)
    if (warning := collapse_warning(model.name, spread, num_classes=num_classes)) is not None:
        log.warning("%s", warning)
    return Baselines(
        evaluation=evaluation,
        untrained=measure_untrained(model, images, macs),
        spread=None if spread is None else dataclasses.asdict(spread),
        collapsed=is_collapsed(spread, num_classes=num_classes),
    )


def measure_untrained(model: Network, images: GateImages, macs: int) -> list[dict[str, Any]]:
    """Scores of the same architecture with random weights on the gate's images and on those of the bench.

    `macs`: multiply-accumulates for one image. Empty where nothing can be scored or the network is too large.
    """
    gate, bench = images.evaluation, choose_split(images.evaluation.manifest, "test", "val")
    if gate.not_scored is not None and bench.not_scored is not None:
        return []
    untrained = untrained_network(model.describe())
    if untrained is None:
        return []
    found = []
    if gate.not_scored is None:
        with stage(f"embedding {len(images.rows)} images with an untrained {model.name}, to compare with"):
            scored = images.score(run_torch(untrained, images.pixels_NHWC))
        if scored is not None:
            found.append({"fingerprint": gate.fingerprint, "split": gate.split, "figures": scored.scores.figures})
    if bench.not_scored is None and bench.fingerprint != gate.fingerprint:
        figures = untrained_on(untrained, bench, macs)
        if figures is not None:
            found.append({"fingerprint": bench.fingerprint, "split": bench.split, "figures": figures})
    return found


def untrained_on(untrained: Network, bench: EvaluationSet, macs: int) -> dict[str, float | None] | None:
    """The figures on the images that the bench will measure on; None where they cost much or are not all there."""
    if (cost := macs * len(bench.rows)) > MOST_MACS:
        log.info("%s: an untrained network is not measured, it would cost %.2g MACs", bench.split, cost)
        return None
    try:
        bench.manifest.take(bench.rows).require_files()
    except UserError as error:
        log.info("%s: an untrained network is not measured: %s", bench.split, error)
        return None
    with stage(f"embedding {len(bench.rows)} images of the {bench.split} split with an untrained {untrained.name}"):
        embedding_ND, kept = embed_files(
            untrained, bench.files, batch_size=BATCH, workers=0, device="cpu", precision="fp32"
        )
    if len(kept) < len(bench.rows):
        return None
    return score_queries(
        embedding_ND, bench.rows, embedding_ND, bench.rows, bench.manifest, bench.query, bench.index
    ).scores.figures
