"""Runs a written file on real images, in every installed runtime, and applies the gate to its figures."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from edgeembed.agreement import find_defect, measure_agreement
from edgeembed.arrays import FloatArray, UInt8Array
from edgeembed.chance import beside_chance
from edgeembed.device.bundle_schema import MapLoss, Parity
from edgeembed.device.runtimes import ONNX_RUNTIMES, Session, is_installed, open_session
from edgeembed.errors import CheckFailed, UserError
from edgeembed.evaluation import ScoredQueries
from edgeembed.export.gate import GateResult, apply_gate, measure_map_loss
from edgeembed.export.recipe import GateSection
from edgeembed.files import sha256_of
from edgeembed.metrics import RetrievalScores
from edgeembed.progress import stage

log = logging.getLogger(__name__)

BATCH = 16
GATE_RUNTIME = "onnxruntime"
"""The runtime whose figures decide whether an ONNX file is written; those of other runtimes are recorded only."""


class ComparisonImages(Protocol):
    """Images that files are compared on, (N, H, W, 3) uint8, and their labels, where there are any.

    Only the embeddings of the first `num_parity` images are compared with torch.
    """

    @property
    def pixels_NHWC(self) -> UInt8Array: ...  # noqa: N802

    @property
    def num_parity(self) -> int: ...

    def score(self, embedding_ND: FloatArray, /) -> ScoredQueries | None: ...

    def summary(self, scores: RetrievalScores, /) -> dict[str, Any]: ...

    def enlarged(self, num_queries: int, /) -> ComparisonImages | None: ...


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The embeddings of all images by one file in one runtime, (N, D), their retrieval, and the gate's result."""

    path: Path
    embedding_ND: FloatArray
    gate_result: GateResult
    scored: ScoredQueries | None

    @property
    def scores(self) -> RetrievalScores | None:
        return None if self.scored is None else self.scored.scores

    @property
    def is_broken(self) -> bool:
        return self.gate_result.is_broken

    def facts(self, images: ComparisonImages) -> dict[str, Any]:
        """`parity` and `retrieval` of a file's entry in bundle.json; a broken file has none."""
        assert self.gate_result.parity is not None, "a broken file is never written"
        retrieval = None if self.scores is None else images.summary(self.scores)
        loss = self.gate_result.map_loss
        if retrieval is not None and loss is not None:
            retrieval["map_loss"] = loss.model_dump(mode="json")
        return {"parity": self.gate_result.parity.model_dump(), "retrieval": retrieval}


@dataclass(kw_only=True)
class Checker:
    """Compares each file of an export with torch and, as soon as `fp32` is set, with the fp32 file.

    `images` are replaced by a larger sample where they are too few to show whether a loss is within its limit.
    """

    images: ComparisonImages
    reference_ND: FloatArray
    gate: GateSection
    transformer: bool
    untrained_map: float | None = None
    """mAP of the untrained network on `images`, where it was measured."""
    fp32: CheckResult | None = None

    def check(
        self, path: Path, precision: str, *, runtime: str = GATE_RUNTIME, earlier: CheckResult | None = None
    ) -> CheckResult:
        """Embeds all images, or only the new ones where `earlier` is a check of the same file on fewer images.

        Raises the runtime's error where the file does not run.
        """
        known_MD = None if earlier is None else earlier.embedding_ND
        pixels_NHWC = self.images.pixels_NHWC[0 if known_MD is None else len(known_MD) :]
        with stage(f"checking {path.name} on {len(pixels_NHWC)} {'more ' if earlier else ''}images in {runtime}"):
            embedding_ND = run_session(open_session(path, runtime=runtime), pixels_NHWC)
        if known_MD is not None:
            embedding_ND = np.concatenate([known_MD, embedding_ND])
        result = self.evaluate(path, embedding_ND, precision)
        log.info("%s in %s: %s", precision, runtime, describe(result, self.untrained_map))
        return result

    def check_on_enough_images(self, path: Path, precision: str) -> CheckResult:
        """Doubles the images until they show whether the loss is within its limit, or there are no more of them."""
        result = self.check(path, precision)
        while (needed := result.gate_result.queries_needed) is not None:
            larger = self.images.enlarged(needed)
            if larger is None:
                break
            log.info("%s: %s", precision, result.gate_result.not_shown)
            # The untrained network was measured on the smaller sample only.
            self.images, self.untrained_map = larger, None
            # Both files must be scored on the same queries, because the loss is paired.
            if self.fp32 is not None:
                self.fp32 = self.extend(self.fp32, "fp32")
            result = self.extend(result, precision)
        return result

    def extend(self, result: CheckResult, precision: str) -> CheckResult:
        """Extends the check of a file to the images that were added after it."""
        if len(result.embedding_ND) == len(self.images.pixels_NHWC):
            return result
        return self.check(result.path, precision, earlier=result)

    def evaluate(self, path: Path, embedding_ND: FloatArray, precision: str) -> CheckResult:
        """Returns the check of a file from its embeddings of all images, (N, D)."""
        compared_ND = embedding_ND[: self.images.num_parity]
        # Before any figure: a cosine or an mAP of such vectors would say nothing.
        if defect := find_defect(compared_ND, self.reference_ND.shape):
            result = GateResult(parity=None, map_loss=None, reasons=(defect,))
            return CheckResult(path=path, embedding_ND=embedding_ND, gate_result=result, scored=None)
        parity = Parity.model_validate(dataclasses.asdict(measure_agreement(self.reference_ND, compared_ND)))
        scored = self.images.score(embedding_ND)
        # int8 of a transformer may lose more: see `GateSection`.
        thresholds = self.gate.thresholds_for(precision, transformer=self.transformer)
        loss: MapLoss | None = None
        # The fp32 file itself has no loss of mAP: it is compared with torch alone.
        reference = None if self.fp32 is None or self.fp32.path == path else self.fp32.scored
        if reference is not None and scored is not None:
            loss = measure_map_loss(reference, scored, thresholds.map_loss)
        return CheckResult(
            path=path,
            embedding_ND=embedding_ND,
            gate_result=apply_gate(parity, loss, thresholds),
            scored=scored,
        )

    def check_other_runtimes(self, path: Path, precision: str) -> dict[str, Any]:
        """Returns `runtimes` of bundle.json: the gate's figures in other runtimes, which refuse nothing."""
        found: dict[str, Any] = {}
        for runtime in ONNX_RUNTIMES:
            # A runtime that is missing here is not listed: the file is then never its default.
            if runtime == GATE_RUNTIME or not is_installed(runtime):
                continue
            try:
                result = self.check(path, precision, runtime=runtime)
            # These figures are for information: a runtime that fails does not fail the export.
            except (CheckFailed, UserError) as error:
                log.warning("%s does not run in %s: %s", path.name, runtime, error)
                continue
            if not result.is_broken:
                found[runtime] = {**result.facts(self.images), "passed": not result.gate_result.reasons}
        return found


def file_facts(path: Path, precision: str, runtime: str) -> dict[str, Any]:
    """Returns the keys of a file's entry in bundle.json that describe the file itself, without any figure."""
    return {
        "path": path.name,
        "runtime": runtime,
        "precision": precision,
        "sha256": sha256_of(path),
        "bytes": path.stat().st_size,
    }


def is_transformer(model: onnx.ModelProto) -> bool:
    """Whether a graph has attention, for which the gate has other limits in int8."""
    # By the graph, so that it is known for a finished bundle too, without its network.
    return any(node.op_type in ("Softmax", "Attention") for node in model.graph.node)


def describe(result: CheckResult, untrained_map: float | None) -> str:
    """One line for the log: the figures, and what the gate made of them."""
    parity, loss = result.gate_result.parity, result.gate_result.map_loss
    if parity is None:
        return f"{', '.join(result.gate_result.reasons)}: {result.gate_result.outcome}"
    figures = f"cosine p1 {parity.cosine_p1:.5f}, p50 {parity.cosine_p50:.5f}"
    if parity.relative_error_p50 is not None:
        figures += f", error {parity.relative_error_p50:.5f} of the distance between images"
    scores = result.scores
    chance = None if scores is None else scores.chance["map"]
    figures += f", {beside_chance(None if scores is None else scores.map, chance=chance, untrained=untrained_map)}"
    if loss is not None:
        figures += f", {loss.difference}"
    return f"{figures}: {result.gate_result.outcome}"


def run_session(session: Session, pixels_NHWC: UInt8Array) -> FloatArray:
    """Embeddings (N, D) in batches."""
    starts = range(0, len(pixels_NHWC), BATCH)
    return np.concatenate([session.run(pixels_NHWC[i : i + BATCH]) for i in starts])
