"""The untrained network of a bundle's kind: from the bundle where it was measured on these images, else built here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeembed.bench import untrained as module
from edgeembed.bench.candidates import Candidate, find_candidates
from edgeembed.bench.report_schema import ByIndex
from edgeembed.bench.retrieval import choose_protocol, measure_quality
from edgeembed.bench.untrained import UntrainedBaselines, architecture_of
from edgeembed.data.manifest import Manifest
from edgeembed.device.bundle_schema import EvaluationFacts
from edgeembed.evaluation import RetrievalProtocol
from tests.bench.conftest import CLASSES, VIEWS

ALL_ROWS = np.arange(CLASSES * VIEWS + 1)
READABLE = ALL_ROWS[:-1]  # the last file is broken
FIGURES = {"map": 0.297, "map_at_100": 0.3, "mp_at_5": 0.2, "recall_at_1": 0.1, "map_at_r": 0.2}


@pytest.fixture
def protocol(manifest: Manifest) -> RetrievalProtocol:
    return choose_protocol(manifest)


def recorded(bundle: Path, fingerprint: str, student: dict[str, Any] | None = None) -> Candidate:
    (candidate,) = find_candidates([bundle])[:1]
    kept = {"fingerprint": fingerprint, "split": "test", "figures": FIGURES}
    facts = EvaluationFacts.model_validate(
        {"split": "test", "fingerprint": fingerprint, "queries": 4, "index": 12, "untrained": [kept]}
    )
    known = candidate.bundle.model_copy(update={"evaluation": facts, "student": student})
    return dataclasses.replace(candidate, bundle=known)


def test_it_is_read_from_the_bundle_for_the_same_queries_and_index_alone(
    bundle: Path, protocol: RetrievalProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the base install, which has no torch."""
    monkeypatch.setattr(module, "NEEDED", ("a_package_that_nobody_has",))
    same = recorded(bundle, protocol.fingerprint)
    assert UntrainedBaselines(protocol, ALL_ROWS, None).figures(same) == ByIndex(symmetric=FIGURES)
    assert UntrainedBaselines(protocol, ALL_ROWS, None).figures(recorded(bundle, "0" * 16)) is None
    assert UntrainedBaselines(protocol, ALL_ROWS[1:], None).figures(same) is None
    nothing = dataclasses.replace(protocol, not_scored="no labels")
    assert UntrainedBaselines(nothing, ALL_ROWS, None).figures(same) is None


def test_a_bundle_without_its_architecture_has_none(bundle: Path, protocol: RetrievalProtocol) -> None:
    candidate = recorded(bundle, "0" * 16)
    assert architecture_of(candidate.bundle) is None
    assert UntrainedBaselines(protocol, ALL_ROWS, None).figures(candidate) is None


@pytest.mark.training
def test_a_teacher_has_one_too(teacher: Path, protocol: RetrievalProtocol) -> None:
    from edgeembed.bench.teacher import load_teacher

    known = load_teacher(teacher, [])
    figures = known.untrained_figures(protocol, READABLE)
    assert figures is not None
    assert figures.asymmetric is None
    quality = measure_quality(protocol, known.embed(protocol, workers=0), READABLE)
    # The fixture's teacher has these very random weights.
    assert figures.symmetric == pytest.approx(quality.symmetric.scores.figures)
    assert known.untrained_figures(dataclasses.replace(protocol, not_scored="no labels"), READABLE) is None


@pytest.mark.training
def test_it_is_built_and_measured_here_where_torch_is_installed(bundle: Path, protocol: RetrievalProtocol) -> None:
    found = []
    for student in (
        {"role": "student", "backbone": "test_resnet"},  # as earlier versions wrote it
        {"role": "student", "backbone": "test_resnet", "architecture": {"backbone": "test_resnet", "dropout": 0.0}},
    ):
        candidate = recorded(bundle, "0" * 16, student)
        figures = UntrainedBaselines(protocol, READABLE, None).figures(candidate)
        assert figures is not None
        assert figures.asymmetric is None
        found.append(figures.symmetric)
    assert found[0] == found[1]
    assert 0 < found[0]["map"] < 1


@pytest.mark.training
def test_a_network_that_cannot_be_built_is_a_warning(
    bundle: Path, protocol: RetrievalProtocol, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = recorded(bundle, "0" * 16, {"role": "student", "backbone": "no_such_network"})
    assert UntrainedBaselines(protocol, ALL_ROWS, None).figures(unknown) is None
    assert "no untrained network to compare with" in caplog.text
