"""What eval.json holds: written and read by one model, also as earlier versions wrote it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgeembed.errors import UserError
from edgeembed.eval_json import (
    StudentEvaluation,
    TeacherEvaluation,
    describe_scores,
    read_evaluation,
    scores_from_json,
    write_evaluation,
)
from edgeembed.evaluation import Retention
from edgeembed.metrics import not_scored
from edgeembed.run_folder import RunFolder
from edgeembed.size_ratio import SizeRatio
from edgeembed.spread import Spread

COUNTS: dict[str, Any] = {"split": "val", "queries": 4, "index": 9}
SHARE = Retention(value=0.9, ci95=(0.8, 1.0), ci95_queries=(0.85, 0.95), ci95_classes=(0.8, 1.0))


def student() -> StudentEvaluation:
    scores = dataclasses.replace(not_scored(4), map=0.5, chance={"map": 0.1})
    return StudentEvaluation(
        **COUNTS,
        scores={"symmetric": scores, "asymmetric": not_scored(4)},
        retention={"symmetric": SHARE, "asymmetric": None},
        size_ratio=SizeRatio(params=4.2, macs=None),
        teacher=scores,
        untrained={"symmetric": {"map": 0.2}},
        spread=Spread(images=9, mean_cosine=0.3, effective_dim=12.0),
        seconds=1.5,
        steps=20,
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    run = RunFolder(path=tmp_path)
    write_evaluation(run, student())
    assert read_evaluation(run, StudentEvaluation) == student()
    value = json.loads((tmp_path / "eval.json").read_text())
    assert list(value) == [
        "split", "queries", "index", "queries_without_match", "labels_of_one_image", "unlabelled", "not_scored",
        "scores", "retention", "size_ratio", "teacher", "untrained", "spread", "seconds", "steps",
    ]  # fmt: skip
    assert value["retention"]["symmetric"]["ci95"] == [0.8, 1.0]
    assert value["scores"]["symmetric"]["map"] == 0.5


def test_what_an_earlier_version_lacked_has_a_default_and_what_a_newer_one_added_is_ignored(tmp_path: Path) -> None:
    older = {**COUNTS, "scores": {"map": 0.5, "ci95": {"map": [None, None]}}, "seconds": 2, "steps": 3, "added": 1}
    (tmp_path / "eval.json").write_text(json.dumps(older))
    evaluation = read_evaluation(RunFolder(path=tmp_path), TeacherEvaluation)
    assert evaluation.scores is not None
    assert (evaluation.scores.map, evaluation.scores.ci95, evaluation.scores.chance) == (0.5, {"map": None}, {})
    assert (evaluation.spread, evaluation.not_scored, evaluation.unlabelled) == (None, None, 0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"queries": "many"}, "queries = 'many': "),
        ({"scores": {"symmetric": {"map": "good"}}}, "scores.symmetric.map = 'good': "),
        ({"retention": {"symmetric": {"value": 0.9}}}, "retention.symmetric.ci95: missing: "),
    ],
)
def test_a_value_of_a_wrong_type_is_named_with_file_and_key(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    (tmp_path / "eval.json").write_text(json.dumps({**COUNTS, **changes}))
    with pytest.raises(UserError) as caught:
        read_evaluation(RunFolder(path=tmp_path), StudentEvaluation)
    assert str(caught.value).startswith(f"{tmp_path / 'eval.json'}: {named}")
    assert "restore the file, or train into another --out" in str(caught.value)


def test_untrained_figures_are_found_by_index() -> None:
    assert (student().untrained_map("symmetric"), student().untrained_map("asymmetric")) == (0.2, None)
    assert StudentEvaluation(**COUNTS).untrained_map("symmetric") is None


def test_scores_of_an_earlier_version_have_no_chance() -> None:
    scores = {"map": 0.5, "recall_at_1": 0.25, "queries": 4, "queries_without_match": 1}
    assert describe_scores(scores_from_json(scores), untrained=None) == (
        "mAP 0.5000, recall@1 0.2500 (4 queries, 1 of them without a match)"
    )


@pytest.mark.parametrize(
    ("intervals", "text"),
    [
        ({"ci95": (0.4, 0.6)}, "queries [0.4000, 0.6000]"),  # an earlier version
        ({"ci95": (0.4, 0.6), "ci95_queries": (0.4, 0.6), "ci95_classes": (0.45, 0.55)}, "queries [0.4000, 0.6000]"),
        ({"ci95": (0.4, 0.6), "ci95_queries": [0.4, 0.6], "ci95_classes": None}, "queries [0.4000, 0.6000]"),
        ({"ci95": (0.3, 0.7), "ci95_queries": [0.4, 0.6], "ci95_classes": [0.3, 0.7]}, "classes [0.3000, 0.7000]"),
    ],
)
def test_the_leading_interval_is_named_by_what_it_resamples(intervals: dict[str, Any], text: str) -> None:
    scores = {"map": 0.5, "recall_at_1": 0.25, "queries": 4, "queries_without_match": 0, "chance": {"map": 0.1}}
    scores |= {key: {"map": ends} for key, ends in intervals.items()}
    assert describe_scores(scores_from_json(scores), untrained=0.2) == (
        f"mAP 0.5000 (95 % interval over {text}, chance 0.1000, untrained 0.2000), recall@1 0.2500 "
        "(4 queries, 0 of them without a match)"
    )


def test_scores_without_a_match_have_no_interval() -> None:
    for interval in (None, [None, None]):  # the latter in an earlier version
        scores = dataclasses.asdict(not_scored(3)) | {"ci95": {"map": interval}}
        text = describe_scores(scores_from_json(scores), untrained=None)
        assert text == "mAP not scored (3 queries, 3 of them without a match)"


def test_a_missing_key_is_named_without_the_rest_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text("{}")
    with pytest.raises(UserError, match=r"eval.json: split: missing: restore the file") as error:
        read_evaluation(RunFolder(path=tmp_path), TeacherEvaluation)
    assert len(str(error.value)) < 200
