"""Runs a written file on real images, in every runtime that is installed, and judges what comes out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from edgeembed.bundle import parity
from edgeembed.chance import beside_chance
from edgeembed.embedder import FloatArray
from edgeembed.errors import CheckFailed, UserError
from edgeembed.export.gate import AveragePrecisions, MapLoss, Verdict, judge, map_loss
from edgeembed.export.recipe import GateSection
from edgeembed.images import UInt8Array
from edgeembed.metrics import RetrievalScores
from edgeembed.progress import stage
from edgeembed.runtimes import READ_ONNX, Session, is_installed, open_session

log = logging.getLogger(__name__)

BATCH = 16
OWN_RUNTIME = "onnxruntime"


class Judged(Protocol):
    """Images that files are judged on: those to compare embeddings of come first; labels, where there are any."""

    @property
    def pixels_NHWC(self) -> UInt8Array: ...  # noqa: N802

    @property
    def num_parity(self) -> int: ...

    def score(self, embedding_ND: FloatArray, /) -> RetrievalScores | None: ...

    def average_precisions(self, embedding_ND: FloatArray, /) -> AveragePrecisions | None: ...

    def summary(self, scores: RetrievalScores, /) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A file in one runtime: the verdict, its retrieval, and the average precision of each query."""

    verdict: Verdict
    scores: RetrievalScores | None
    average_precision_Q: AveragePrecisions | None

    @property
    def broken(self) -> bool:
        """Whether it gives NaN or another shape, which nobody can accept."""
        return self.verdict.parity.cosine_p1 == -1.0

    def facts(self, images: Judged) -> dict[str, Any]:
        """`parity` and `retrieval` of bundle.json."""
        retrieval = None if self.scores is None else images.summary(self.scores)
        loss = self.verdict.map_loss
        if retrieval is not None and loss is not None:
            retrieval["map_loss"] = {"value": loss.value, "ci95": [loss.low, loss.high]}
        return {"parity": self.verdict.parity.model_dump(), "retrieval": retrieval}


@dataclass(frozen=True, kw_only=True)
class Checker:
    """What every file of an export is held against: torch, and the fp32 file where there is one already."""

    images: Judged
    reference_ND: FloatArray
    gate: GateSection
    transformer: bool
    untrained_map: float | None = None

    def check(self, path: Path, precision: str, fp32: Checked | None, *, runtime: str = OWN_RUNTIME) -> Checked:
        """Raises what the runtime raises where the file does not run."""
        with stage(f"checking {path.name} on {len(self.images.pixels_NHWC)} images in {runtime}"):
            embedding_ND = run_session(open_session(path, runtime=runtime), self.images.pixels_NHWC)
        checked = self.judged(embedding_ND, precision, fp32)
        log.info("%s in %s: %s", precision, runtime, describe(checked, self.untrained_map))
        return checked

    def judged(self, embedding_ND: FloatArray, precision: str, fp32: Checked | None) -> Checked:
        """Embeddings of all images, held against the thresholds of a precision."""
        agreement = parity(self.reference_ND, embedding_ND[: self.images.num_parity])
        found_Q = self.images.average_precisions(embedding_ND)
        loss: MapLoss | None = None
        if fp32 is not None and fp32.average_precision_Q is not None and found_Q is not None:
            loss = map_loss(fp32.average_precision_Q, found_Q)
        wanted = self.gate.of(precision, transformer=self.transformer)
        return Checked(
            verdict=judge(agreement, loss, wanted),
            scores=self.images.score(embedding_ND),
            average_precision_Q=found_Q,
        )

    def check_others(self, path: Path, precision: str, fp32: Checked | None) -> dict[str, Any]:
        """`runtimes` of bundle.json: the same file and gate in the other runtimes; a failure there refuses nothing."""
        found: dict[str, Any] = {}
        for runtime in READ_ONNX:
            if runtime == OWN_RUNTIME or not is_installed(runtime):
                continue
            try:
                checked = self.check(path, precision, fp32, runtime=runtime)
            except (CheckFailed, UserError) as error:
                log.warning("%s does not run in %s: %s", path.name, runtime, error)
                continue
            if not checked.broken:
                found[runtime] = {**checked.facts(self.images), "passed": not checked.verdict.reasons}
        return found


def is_transformer(model: onnx.ModelProto) -> bool:
    return any(node.op_type in ("Softmax", "Attention") for node in model.graph.node)


def describe(checked: Checked, untrained_map: float | None) -> str:
    agreement, loss = checked.verdict.parity, checked.verdict.map_loss
    figures = f"cosine p1 {agreement.cosine_p1:.5f}, p50 {agreement.cosine_p50:.5f}"
    if agreement.relative_error_p50 is not None:
        figures += f", error {agreement.relative_error_p50:.5f} of the distance between images"
    scores = checked.scores
    chance = None if scores is None else scores.chance["map"]
    figures += f", {beside_chance(None if scores is None else scores.map, chance=chance, untrained=untrained_map)}"
    if loss is not None:
        figures += f", {100 * loss.value:.2f} points [{100 * loss.low:.2f}, {100 * loss.high:.2f}] below fp32"
    return f"{figures}: {'REFUSED' if checked.verdict.reasons else 'passed'}"


def run_session(session: Session, pixels_NHWC: UInt8Array) -> FloatArray:
    starts = range(0, len(pixels_NHWC), BATCH)
    return np.concatenate([session.run(pixels_NHWC[i : i + BATCH]) for i in starts])
