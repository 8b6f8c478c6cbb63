"""The untrained network of a bundle's kind: from the bundle where it was measured on these images, else built here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeembed.bench import untrained as module
from edgeembed.bench.candidates import Candidate, find_candidates
from edgeembed.bench.retrieval import evaluation_set, judge
from edgeembed.bench.untrained import Untrained, architecture_of
from edgeembed.data.manifest import Manifest
from edgeembed.device.bundle_schema import EvaluationFacts
from edgeembed.evaluation import EvaluationSet
from edgeembed.metrics import METRICS
from tests.bench.conftest import CLASSES, VIEWS

READABLE = np.ones(CLASSES * VIEWS + 1, np.bool_)
FIGURES = {"map": 0.297, "map_at_100": 0.3, "mp_at_5": 0.2, "recall_at_1": 0.1, "map_at_r": 0.2}


@pytest.fixture
def evaluation(manifest: Manifest) -> EvaluationSet:
    return evaluation_set(manifest)


def recorded(bundle: Path, fingerprint: str, student: dict[str, Any] | None = None) -> Candidate:
    (candidate,) = find_candidates([bundle])[:1]
    kept = {"fingerprint": fingerprint, "split": "test", "figures": FIGURES}
    facts = EvaluationFacts.model_validate(
        {"split": "test", "fingerprint": fingerprint, "queries": 4, "index": 12, "untrained": [kept]}
    )
    known = candidate.bundle.model_copy(update={"evaluation": facts, "student": student})
    return dataclasses.replace(candidate, bundle=known)


def test_it_is_read_from_the_bundle_for_the_same_queries_and_index_alone(
    bundle: Path, evaluation: EvaluationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the base install, which has no torch."""
    monkeypatch.setattr(module, "NEEDED", ("a_package_that_nobody_has",))
    same = recorded(bundle, evaluation.fingerprint)
    assert Untrained(evaluation, READABLE, None).figures(same) == {"symmetric": FIGURES, "asymmetric": None}
    assert Untrained(evaluation, READABLE, None).figures(recorded(bundle, "0" * 16)) is None
    assert Untrained(evaluation, np.arange(READABLE.size) > 0, None).figures(same) is None
    nothing = dataclasses.replace(evaluation, not_scored="no labels")
    assert Untrained(nothing, READABLE, None).figures(same) is None


def test_bundles_that_do_not_say_what_they_are_have_none(bundle: Path, evaluation: EvaluationSet) -> None:
    candidate = recorded(bundle, "0" * 16)
    assert architecture_of(candidate.bundle) is None
    assert Untrained(evaluation, READABLE, None).figures(candidate) is None


@pytest.mark.training
def test_a_teacher_has_one_too(teacher: Path, evaluation: EvaluationSet) -> None:
    from edgeembed.bench.teacher import load_teacher

    known = load_teacher(teacher, [])
    readable_N = np.arange(READABLE.size) < READABLE.size - 1
    figures = known.untrained(evaluation, readable_N)
    assert figures is not None
    assert figures["asymmetric"] is None
    own = judge(evaluation, known.embed(evaluation, workers=0), readable_N)
    symmetric = own.retrieval["symmetric"]  # the fixture's teacher has these very random weights
    assert figures["symmetric"] == pytest.approx({name: symmetric[name] for name in METRICS})
    assert known.untrained(dataclasses.replace(evaluation, not_scored="no labels"), readable_N) is None


@pytest.mark.training
def test_it_is_built_and_measured_here_where_torch_is_installed(bundle: Path, evaluation: EvaluationSet) -> None:
    readable_N = np.arange(READABLE.size) < READABLE.size - 1
    found = []
    for student in (
        {"role": "student", "backbone": "test_resnet"},  # as earlier versions wrote it
        {"role": "student", "backbone": "test_resnet", "architecture": {"backbone": "test_resnet", "dropout": 0.0}},
    ):
        candidate = recorded(bundle, "0" * 16, student)
        figures = Untrained(evaluation, readable_N, None).figures(candidate)
        assert figures is not None
        assert figures["asymmetric"] is None
        found.append(figures["symmetric"])
    assert found[0] == found[1]
    assert 0 < found[0]["map"] < 1


@pytest.mark.training
def test_a_network_that_cannot_be_built_is_said_and_ends_nothing(
    bundle: Path, evaluation: EvaluationSet, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = recorded(bundle, "0" * 16, {"role": "student", "backbone": "no_such_network"})
    assert Untrained(evaluation, READABLE, None).figures(unknown) is None
    assert "no untrained network to compare with" in caplog.text
