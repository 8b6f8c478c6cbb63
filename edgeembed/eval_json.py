"""What eval.json of a finished run holds: how a teacher or a student scores on the val split."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from edgeembed.chance import beside_chance
from edgeembed.errors import UserError
from edgeembed.evaluation import ProtocolCounts, Retention
from edgeembed.files import read_json, write_json
from edgeembed.intervals import ResamplingUnit, interval_text
from edgeembed.metrics import RetrievalScores
from edgeembed.run_folder import RunFolder
from edgeembed.size_ratio import SizeRatio
from edgeembed.spread import Spread

IndexKind: TypeAlias = Literal["symmetric", "asymmetric"]
"""Whose embeddings a student searches: its own (symmetric) or its teacher's (asymmetric)."""


class TeacherEvaluation(ProtocolCounts):
    """eval.json of a teacher. `scores` is None where nothing could be scored or the recipe turns evaluation off."""

    scores: RetrievalScores | None = None
    spread: Spread | None = None
    seconds: float = 0.0
    steps: int = 0


class StudentEvaluation(ProtocolCounts):
    """eval.json of a student: `scores` and `retention` by the index that it searches.

    `size_ratio`: the teacher's parameters and MACs divided by the student's; None where the teacher's are not known.
    `teacher`: the teacher's scores in its own index. `untrained`: the figures of the student's architecture with random
    weights, in both indexes; None where that network is too large.
    """

    scores: dict[IndexKind, RetrievalScores] | None = None
    retention: dict[IndexKind, Retention | None] = Field(default_factory=dict)
    size_ratio: SizeRatio | None = None
    teacher: RetrievalScores | None = None
    untrained: dict[IndexKind, dict[str, float | None]] | None = None
    spread: Spread | None = None
    seconds: float = 0.0
    steps: int = 0

    def untrained_map(self, kind: IndexKind) -> float | None:
        return ((self.untrained or {}).get(kind) or {}).get("map")


EvaluationT = TypeVar("EvaluationT", TeacherEvaluation, StudentEvaluation)


def write_evaluation(run: RunFolder, evaluation: TeacherEvaluation | StudentEvaluation) -> None:
    write_json(eval_json_of(run), evaluation.model_dump())  # keys in the order of the fields


def read_evaluation(run: RunFolder, kind: type[EvaluationT]) -> EvaluationT:
    """Reads a finished run's eval.json. Raises UserError that names the file and the first wrong key."""
    path = eval_json_of(run)
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        # Of a missing key pydantic's input is the whole file.
        problem = f"{key}: missing" if first["type"] == "missing" else f"{key} = {first['input']!r}: {first['msg']}"
        raise UserError(f"{path}: {problem}: restore the file, or train into another --out") from None


def eval_json_of(run: RunFolder) -> Path:
    return run.path / "eval.json"


def scores_from_json(value: Any) -> RetrievalScores:
    """Scores as eval.json, report.json and results of benchmarks hold them."""
    return TypeAdapter(RetrievalScores).validate_python(value)


def describe_scores(scores: RetrievalScores, *, untrained: float | None) -> str:
    """Scores in one line of text, with interval and chance where they are known."""
    ends = scores.ci95.get("map")
    interval = None
    if ends is not None:
        interval = f"95 % interval over {leading_interval(scores, 'map')} {interval_text(ends, digits=4)}"
    text = beside_chance(scores.map, interval=interval, chance=scores.chance.get("map"), untrained=untrained)
    recall = "" if scores.recall_at_1 is None else f", recall@1 {scores.recall_at_1:.4f}"
    return f"{text}{recall} ({scores.queries} queries, {scores.queries_without_match} of them without a match)"


def leading_interval(scores: RetrievalScores, figure: str) -> ResamplingUnit:
    """Whether the interval `ci95` of a figure is the one over queries or the one over classes."""
    over_queries = scores.ci95_queries.get(figure)  # earlier versions had intervals over queries alone
    return "classes" if over_queries is not None and scores.ci95.get(figure) != over_queries else "queries"
