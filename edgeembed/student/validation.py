"""Retrieval of a student on the val split, while it is distilled: in its own index and in its teacher's."""

from __future__ import annotations

from dataclasses import dataclass

from edgeembed.eval_json import IndexKind
from edgeembed.evaluation import EmbeddedRows, Retention, RetrievalProtocol, retention
from edgeembed.metrics import RetrievalScores
from edgeembed.network.model import EmbeddingModel, Network
from edgeembed.network.untrained import untrained_network
from edgeembed.progress import stage
from edgeembed.spread import Spread, spread_of
from edgeembed.student.recipe import DistillRecipe
from edgeembed.student.teachers import Teacher
from edgeembed.training.embed import embed_files


@dataclass(frozen=True, kw_only=True)
class StudentScores:
    """A student's retrieval in its own index (symmetric) and in the teacher's (asymmetric).

    `retention`: its mAP in each as a share of the teacher's mAP in the teacher's index.
    """

    scores: dict[IndexKind, RetrievalScores]
    retention: dict[IndexKind, Retention | None]
    spread: Spread | None

    @property
    def summary(self) -> str:
        """The asymmetric mAP, of the student's queries in its teacher's index; for the progress line."""
        asymmetric = self.scores["asymmetric"].map
        return "" if asymmetric is None else f"val mAP {asymmetric:.3f} asymmetric"

    @property
    def scalars(self) -> dict[str, float | None]:
        """mAP by its name in metrics.jsonl."""
        return {f"val_{kind}_map": scores.map for kind, scores in self.scores.items()}


class Validation:
    """Scores a student against its own index and against the teacher's, which is embedded once.

    `teacher_scores`: the teacher's, in its own index. `untrained`: the figures of the student's architecture with
    random weights, in both indexes; None where that network is too large.
    """

    def __init__(
        self, recipe: DistillRecipe, protocol: RetrievalProtocol, teacher: Teacher, student: EmbeddingModel, device: str
    ) -> None:
        self.recipe, self.protocol, self.device = recipe, protocol, device
        # Embedded once: only the student changes between evaluations.
        with stage(f"embedding {len(protocol.rows)} validation images with the teacher"):
            embedding_ND, row_N = teacher.embed(protocol.manifest, protocol.rows, recipe, device)
        self.teacher = EmbeddedRows(embedding_ND=embedding_ND, row_N=row_N)
        self.teacher_scores = protocol.score(self.teacher, self.teacher)
        self.untrained: dict[IndexKind, dict[str, float | None]] | None = None
        if (untrained := untrained_network(student.describe())) is not None:
            with stage(f"embedding {len(protocol.rows)} validation images with an untrained {untrained.name}"):
                untrained_scores = self.score(untrained.to(device)).scores
            self.untrained = {kind: scores.figures for kind, scores in untrained_scores.items()}

    def score(self, student: Network) -> StudentScores:
        """Embeds the validation images with a student and scores it in both indexes."""
        protocol = self.protocol
        embedding_ND, kept = embed_files(
            student,
            protocol.files,
            batch_size=self.recipe.eval.batch_size,
            workers=self.recipe.train.workers,
            device=self.device,
            precision=self.recipe.train.precision,
        )
        embedded = EmbeddedRows(embedding_ND=embedding_ND, row_N=protocol.rows[kept])
        # The same queries, in the student's index and in the teacher's.
        symmetric, asymmetric = protocol.score(embedded, embedded), protocol.score(embedded, self.teacher)
        return StudentScores(
            scores={"symmetric": symmetric.scores, "asymmetric": asymmetric.scores},
            retention={
                "symmetric": retention(symmetric, self.teacher_scores),
                "asymmetric": retention(asymmetric, self.teacher_scores),
            },
            spread=spread_of(embedding_ND),
        )
