"""Measures what the figures of an export are read against: chance, an untrained network, the spread of embeddings."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import torch

from edgeembed.arrays import FloatArray, UInt8Array
from edgeembed.errors import UserError
from edgeembed.evaluation import EmbeddedRows, RetrievalProtocol
from edgeembed.export.checks import BATCH
from edgeembed.export.gate_images import GateImages
from edgeembed.metrics import RetrievalScores
from edgeembed.network.model import Network
from edgeembed.network.untrained import untrained_network
from edgeembed.progress import stage
from edgeembed.spread import collapse_warning, is_collapsed, spread_of
from edgeembed.training.embed import embed_files

log = logging.getLogger(__name__)

MAX_UNTRAINED_MACS = 1e12
"""Most multiply-accumulates for the untrained network on the images of the bench: minutes on one core, once."""


def embed_with_torch(model: Network, pixels_NHWC: UInt8Array) -> FloatArray:
    """Embeddings (N, D) of the network itself, before any export."""
    with torch.inference_mode():
        # (N, H, W, 3) to (N, 3, H, W), as the network takes it.
        batches = torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2).split(BATCH)
        return np.concatenate([model(batch).numpy() for batch in batches])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baselines:
    """The measured part of `evaluation` in bundle.json; `untrained` has an entry for each evaluation set."""

    evaluation: RetrievalProtocol
    untrained: list[dict[str, Any]]
    spread: dict[str, Any] | None
    collapsed: bool

    @property
    def untrained_map(self) -> float | None:
        """mAP of the untrained network on the gate's images, where it was measured."""
        fingerprint = self.evaluation.fingerprint
        return next((one["figures"]["map"] for one in self.untrained if one["fingerprint"] == fingerprint), None)

    def facts(self, scores: RetrievalScores | None) -> dict[str, Any]:
        """Returns `evaluation` of bundle.json; `scores` are those of any file, as chance is the same for all files."""
        reason = self.evaluation.not_scored
        if reason is None and scores is None:
            reason = "none of the queries whose images can be read has a match"
        return {
            **self.evaluation.counts().model_dump(),
            "fingerprint": self.evaluation.fingerprint,
            "not_scored": reason,
            "chance": None if scores is None else scores.chance,
            "untrained": self.untrained,
            "spread": self.spread,
            "collapsed": self.collapsed,
        }


def measure_baselines(model: Network, images: GateImages, reference_ND: FloatArray, macs: int) -> Baselines:
    """Measures the baselines on the gate's images, and warns where the embedding space is collapsed.

    `reference_ND`: the model's embeddings of the first images. `macs`: multiply-accumulates for one image.
    """
    evaluation = images.evaluation
    # Few classes lower the effective dimension that a healthy space has.
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
    """Scores the architecture with random weights on the gate's images, and on those of the bench where that is cheap.

    Empty where nothing can be scored or the network is too large.
    """
    # The gate prefers val and the bench test, so that they mostly have different images.
    gate = images.evaluation
    bench = RetrievalProtocol.of_first_scorable(gate.manifest, "test", "val")
    if gate.not_scored is not None and bench.not_scored is not None:
        return []
    untrained = untrained_network(model.describe())
    if untrained is None:
        return []
    measured = []
    if gate.not_scored is None:
        with stage(f"embedding {len(images.rows)} images with an untrained {model.name} for comparison"):
            scored = images.score(embed_with_torch(untrained, images.pixels_NHWC))
        if scored is not None:
            measured.append({"fingerprint": gate.fingerprint, "split": gate.split, "figures": scored.scores.figures})
    # The bench would otherwise need torch, which it does not on a device, to measure this itself.
    if bench.not_scored is None and bench.fingerprint != gate.fingerprint:
        figures = score_untrained(untrained, bench, macs)
        if figures is not None:
            measured.append({"fingerprint": bench.fingerprint, "split": bench.split, "figures": figures})
    return measured


def score_untrained(untrained: Network, bench: RetrievalProtocol, macs: int) -> dict[str, float | None] | None:
    """Scores an untrained network on the images of the bench; None where that is expensive or an image is missing."""
    # `gate.max_macs` limits the gate's images, but nothing limits those of the bench.
    if (cost := macs * len(bench.rows)) > MAX_UNTRAINED_MACS:
        log.info(
            "%s: an untrained network is not measured, that would take %.2g multiply-accumulates", bench.split, cost
        )
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
        return None  # the bench may read what this machine cannot, and would compare figures of other images
    embedded = EmbeddedRows(embedding_ND=embedding_ND, row_N=bench.rows)
    return bench.score(embedded, embedded).scores.figures
