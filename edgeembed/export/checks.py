"""Runs a written file on real images, in every installed runtime, and passes its figures to the gate."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from edgeembed.arrays import FloatArray, UInt8Array
from edgeembed.chance import beside_chance
from edgeembed.device.bundle import parity
from edgeembed.device.bundle_schema import MapLoss
from edgeembed.device.runtimes import ONNX_RUNTIMES, Session, is_installed, open_session
from edgeembed.errors import CheckFailed, UserError
from edgeembed.evaluation import ScoredQueries
from edgeembed.export.gate import Verdict, judge, map_loss
from edgeembed.export.recipe import GateSection
from edgeembed.metrics import RetrievalScores
from edgeembed.progress import stage

log = logging.getLogger(__name__)

BATCH = 16
OWN_RUNTIME = "onnxruntime"


class Judged(Protocol):
    """The gate's images, (N, H, W, 3) uint8, and their labels, where there are any.

    The embeddings of the first `num_parity` are compared with torch one by one.
    """

    @property
    def pixels_NHWC(self) -> UInt8Array: ...  # noqa: N802

    @property
    def num_parity(self) -> int: ...

    def score(self, embedding_ND: FloatArray, /) -> ScoredQueries | None: ...

    def summary(self, scores: RetrievalScores, /) -> dict[str, Any]: ...

    def grown(self, num_queries: int, /) -> Judged | None: ...


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A file in one runtime: the embeddings of all images of the gate, (N, D), their retrieval, and the verdict."""

    path: Path
    embedding_ND: FloatArray
    verdict: Verdict
    scored: ScoredQueries | None

    @property
    def scores(self) -> RetrievalScores | None:
        return None if self.scored is None else self.scored.scores

    @property
    def broken(self) -> bool:
        """Whether it gives NaN or another shape, which nobody can accept."""
        return self.verdict.parity.cosine_p1 == -1.0

    def facts(self, images: Judged) -> dict[str, Any]:
        """`parity` and `retrieval` of bundle.json."""
        retrieval = None if self.scores is None else images.summary(self.scores)
        loss = self.verdict.map_loss
        if retrieval is not None and loss is not None:
            retrieval["map_loss"] = loss.model_dump(mode="json")
        return {"parity": self.verdict.parity.model_dump(), "retrieval": retrieval}


@dataclass(kw_only=True)
class Checker:
    """Compares every file of an export with torch and, as soon as `fp32` is set, with the fp32 file.

    `images` are replaced by a larger sample where they are too few to show whether a loss is within its limit.
    """

    images: Judged
    reference_ND: FloatArray
    gate: GateSection
    transformer: bool
    untrained_map: float | None = None
    """Of the untrained network on `images`, where it was measured."""
    fp32: Checked | None = None

    def check(
        self, path: Path, precision: str, *, runtime: str = OWN_RUNTIME, earlier: Checked | None = None
    ) -> Checked:
        """Embeds all images, or only the new ones where `earlier` is a check of the same file on fewer images.

        Raises the runtime's error where the file does not run.
        """
        known_MD = None if earlier is None else earlier.embedding_ND
        pixels_NHWC = self.images.pixels_NHWC[0 if known_MD is None else len(known_MD) :]
        with stage(f"checking {path.name} on {len(pixels_NHWC)} {'more ' if earlier else ''}images in {runtime}"):
            embedding_ND = run_session(open_session(path, runtime=runtime), pixels_NHWC)
        if known_MD is not None:
            embedding_ND = np.concatenate([known_MD, embedding_ND])
        checked = self.judged(path, embedding_ND, precision)
        log.info("%s in %s: %s", precision, runtime, describe(checked, self.untrained_map))
        return checked

    def check_until_shown(self, path: Path, precision: str) -> Checked:
        """Doubles the images until they show whether the loss is within its limit, or there are not enough of them."""
        checked = self.check(path, precision)
        while (needed := checked.verdict.queries_needed) is not None:
            larger = self.images.grown(needed)
            if larger is None:
                break
            log.info("%s: %s", precision, checked.verdict.not_shown)
            self.images, self.untrained_map = larger, None
            if self.fp32 is not None:
                self.fp32 = self.on_all_images(self.fp32, "fp32")
            checked = self.on_all_images(checked, precision)
        return checked

    def on_all_images(self, checked: Checked, precision: str) -> Checked:
        """The check of a file, extended to the images that were added after it."""
        if len(checked.embedding_ND) == len(self.images.pixels_NHWC):
            return checked
        return self.check(checked.path, precision, earlier=checked)

    def judged(self, path: Path, embedding_ND: FloatArray, precision: str) -> Checked:
        """The check of a file from its embeddings of all images, (N, D)."""
        agreement = parity(self.reference_ND, embedding_ND[: self.images.num_parity])
        scored = self.images.score(embedding_ND)
        wanted = self.gate.of(precision, transformer=self.transformer)
        loss: MapLoss | None = None
        reference = None if self.fp32 is None or self.fp32.path == path else self.fp32.scored
        if reference is not None and scored is not None:
            loss = map_loss(reference, scored, wanted.map_loss)
        return Checked(
            path=path,
            embedding_ND=embedding_ND,
            verdict=judge(agreement, loss, wanted),
            scored=scored,
        )

    def check_others(self, path: Path, precision: str) -> dict[str, Any]:
        """`runtimes` of bundle.json: the same file and gate in the other runtimes; a failure there refuses nothing."""
        found: dict[str, Any] = {}
        for runtime in ONNX_RUNTIMES:
            if runtime == OWN_RUNTIME or not is_installed(runtime):
                continue
            try:
                checked = self.check(path, precision, runtime=runtime)
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
        figures += f", {loss.points} below fp32"
    return f"{figures}: {checked.verdict.outcome}"


def run_session(session: Session, pixels_NHWC: UInt8Array) -> FloatArray:
    starts = range(0, len(pixels_NHWC), BATCH)
    return np.concatenate([session.run(pixels_NHWC[i : i + BATCH]) for i in starts])
