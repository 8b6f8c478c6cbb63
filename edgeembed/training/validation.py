"""Plans and computes a run's retrieval scores on the val split."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from edgeembed.config import EvalSection
from edgeembed.data.manifest import Manifest
from edgeembed.evaluation import EmbeddedRows, RetrievalProtocol
from edgeembed.metrics import RetrievalScores
from edgeembed.network.model import Network
from edgeembed.spread import Spread, spread_of
from edgeembed.training.embed import embed_files

NEVER = "eval.every_steps = 0"


def plan_validation(section: EvalSection, manifest: Manifest) -> RetrievalProtocol:
    """The protocol of the val split, logged before training. With `every_steps` 0 nothing is scored."""
    protocol = RetrievalProtocol.of_split(manifest, "val")
    if section.every_steps == 0:
        return dataclasses.replace(protocol, not_scored=protocol.not_scored or NEVER)
    protocol.log_coverage()
    return protocol


def steps_between_evaluations(section: EvalSection, validation: RetrievalProtocol, total_steps: int) -> int:
    """Steps between evaluations, by default a fifth of the run; 0, for never, also where nothing can be scored."""
    if validation.not_scored is not None:
        return 0
    return math.ceil(total_steps / 5) if section.every_steps is None else section.every_steps


@dataclass(frozen=True, kw_only=True)
class ValidationScores:
    """A model's scores, and the spread of its embeddings of queries and index together; None for fewer than two."""

    scores: RetrievalScores
    spread: Spread | None

    @property
    def summary(self) -> str:
        """The mAP, for the progress line."""
        return "" if self.scores.map is None else f"val mAP {self.scores.map:.3f}"

    @property
    def scalars(self) -> dict[str, float | None]:
        """Scores by their names in metrics.jsonl."""
        figures = self.scores.figures
        return {f"val_{key}": figures[key] for key in ("map", "recall_at_1", "mp_at_5")}


def evaluate(
    model: Network, protocol: RetrievalProtocol, *, batch_size: int, workers: int, device: str, precision: str
) -> ValidationScores:
    """Scores a model on a split's protocol; files that cannot be decoded are left out, with a warning."""
    embedding_ND, kept = embed_files(
        model, protocol.files, batch_size=batch_size, workers=workers, device=device, precision=precision
    )
    embedded = EmbeddedRows(embedding_ND=embedding_ND, row_N=protocol.rows[kept])
    return ValidationScores(scores=protocol.score(embedded, embedded).scores, spread=spread_of(embedding_ND))
