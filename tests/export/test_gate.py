"""The gate: passed where images show that a loss is small, refused where they show that it is not, else not shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np
import pytest

from edgeembed.agreement import measure_agreement
from edgeembed.device.bundle import read_bundle
from edgeembed.device.bundle_schema import BundleFile, MapLoss, Parity, map_loss_in
from edgeembed.device.embedder import default_bundle
from edgeembed.evaluation import ScoredQueries
from edgeembed.export.card import file_remarks
from edgeembed.export.gate import GateResult, apply_gate, measure_map_loss, min_queries, queries_needed
from edgeembed.export.recipe import GateSection, Thresholds
from edgeembed.metrics import not_scored

GATE = GateSection()
GOOD = Parity(cosine_p1=1.0, cosine_p50=1.0, relative_error_p50=0.0, max_abs=0.0)


def unit(count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(1)
    reference = draw.normal(size=(count, 64)).astype(np.float32)
    other = reference + noise * draw.normal(size=(count, 64)).astype(np.float32)
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (reference, other))


def parity_of(reference_ND: np.ndarray, candidate_ND: np.ndarray) -> Parity:
    return Parity.model_validate(dataclasses.asdict(measure_agreement(reference_ND, candidate_ND)))


def scored(average_precision_Q: np.ndarray, class_Q: Sequence[Hashable]) -> ScoredQueries:
    return ScoredQueries(
        scores=not_scored(0),
        row_Q=np.arange(len(average_precision_Q)),
        class_Q=tuple(("toys", str(name)) for name in class_Q),
        average_precision_Q=average_precision_Q,
    )


def gate_result_of(lost_Q: np.ndarray, class_Q: Sequence[Hashable] | None = None, limit: float = 0.005) -> GateResult:
    """The gate's result for a file that loses so much average precision in each query; by default of its own class."""
    classes = range(len(lost_Q)) if class_Q is None else class_Q
    before, after = (scored(0.9 - lost, classes) for lost in (0 * lost_Q, lost_Q))
    return apply_gate(GOOD, measure_map_loss(before, after, limit), Thresholds(map_loss=limit))


def loss_of(lost_Q: np.ndarray, class_Q: Sequence[Hashable] | None = None, limit: float = 0.005) -> MapLoss:
    loss = gate_result_of(lost_Q, class_Q, limit).map_loss
    assert loss is not None
    return loss


def test_the_gate_names_the_figure_that_fails() -> None:
    good, bad = (parity_of(*unit(50, noise)) for noise in (0.0, 0.5))
    assert apply_gate(good, None, GATE.fp32).reasons == ()
    assert "cosine p1" in apply_gate(bad, None, GATE.fp32).reasons[0]
    assert "cosine p50" in apply_gate(bad, None, GATE.int8).reasons[0]
    loss = MapLoss(value=0.02, ci95=(0.01, 0.03), limit=0.005, matched_queries=400, classes=80)
    assert apply_gate(good, loss, GATE.int8).reasons == ("mAP is 2.00 points [1.00, 3.00] below fp32's, more than 0.5",)
    assert not apply_gate(bad, loss, GATE.int8).is_broken


def test_without_a_limit_a_loss_is_reported_and_decides_nothing() -> None:
    loss = measure_map_loss(scored(np.ones(3), "abc"), scored(np.zeros(3), "abc"))
    assert (loss.value, loss.ci95, loss.shown, loss.not_shown) == (1.0, (1.0, 1.0), None, None)
    assert apply_gate(GOOD, loss, Thresholds()).outcome == "passed"


def test_transformers_may_lose_a_point_and_others_half_of_one() -> None:
    lost_Q = np.full(400, 0.008)
    for transformer, outcome in ((True, "passed"), (False, "REFUSED")):
        limit = GATE.thresholds_for("int8", transformer=transformer).map_loss
        assert limit is not None
        assert gate_result_of(lost_Q, limit=limit).outcome == outcome


@pytest.mark.parametrize(
    ("num_queries", "outcome"), [(16, "NOT SHOWN"), (299, "NOT SHOWN"), (300, "passed"), (2000, "passed")]
)
def test_identical_average_precisions_pass_only_with_enough_queries(num_queries: int, outcome: str) -> None:
    found = gate_result_of(np.zeros(num_queries))
    assert found.outcome == outcome
    assert found.map_loss is not None
    assert (found.map_loss.value, found.map_loss.ci95) == (0.0, (0.0, 0.0))
    assert 0.99**300 < 0.05 < 0.99**298  # 1 query in 100 loses 1: a point, twice the limit


def test_too_few_queries_are_named_with_the_number_that_is_needed() -> None:
    found = gate_result_of(np.zeros(16))
    assert found.not_shown == (
        "not shown: 16 matched queries of 16 classes, about 300 of at least 40 classes needed: mAP is 0.00 points "
        "[0.00, 0.00] below fp32's, 0.5 allowed"
    )
    assert found.queries_needed == 300
    queries_of_40_classes = gate_result_of(np.zeros(45), (np.arange(45) % 40).tolist())
    assert "45 matched queries of 40 classes, about 300 needed if it loses nothing" in str(
        queries_of_40_classes.not_shown
    )
    assert found.reasons == ()


@pytest.mark.parametrize("num_queries", [25, 400, 5000])
def test_more_queries_of_too_few_classes_are_never_said_to_be_enough(num_queries: int) -> None:
    found = gate_result_of(np.zeros(num_queries), (np.arange(num_queries) % 8).tolist())
    assert found.map_loss is not None
    assert (found.map_loss.queries_needed, found.map_loss.classes_needed) == (300, 40)
    assert "of 8 classes, about 300 of at least 40 classes needed: " in str(found.not_shown)
    assert found.queries_needed == max(300, 5 * num_queries)  # how far a sample of a larger split grows


def test_the_number_of_queries_needed_grows_with_the_square_of_spread_over_limit() -> None:
    # A half-width of .01 is 1.96 standard errors; 2.8 of them, .0143, are within .005 with (.0143 / .005)^2 = 8.2 times
    # the 100 queries.
    assert queries_needed(100, 0.01, 0.005) == 820
    assert queries_needed(100, 0.02, 0.005) == 3300
    assert queries_needed(100, 0.0, 0.005) == min_queries(0.005) == 300
    assert min_queries(0.01) == 150
    assert queries_needed(100, 0.01, 0.0) == 2_100_000  # for a hundredth of a point, as 0 is never shown


def test_a_clear_loss_is_refused_with_few_queries_and_a_noisy_one_is_not() -> None:
    draw = np.random.default_rng(0)
    assert gate_result_of(draw.normal(0.1, 0.02, size=12)).outcome == "REFUSED"
    swapped_Q = np.zeros(12)
    swapped_Q[3] = 0.5  # one pair of images that changes places
    found = gate_result_of(swapped_Q)
    assert (found.outcome, found.is_within_limit) == ("NOT SHOWN", False)


def test_noise_without_loss_is_shown_to_be_none_with_enough_queries() -> None:
    lost_Q = np.random.default_rng(0).normal(0.0, 0.043, size=4000)
    lost_Q -= lost_Q.mean()
    small, large = gate_result_of(lost_Q[:40]), gate_result_of(lost_Q)
    assert (small.outcome, large.outcome) == ("NOT SHOWN", "passed")
    assert small.queries_needed is not None
    assert 300 <= small.queries_needed <= 1000  # (2.8 * .043 / .005)^2 = 580


def test_a_loss_near_the_limit_is_not_shown_and_no_more_queries_are_needed() -> None:
    lost_Q = np.random.default_rng(0).normal(0.0, 0.04, size=2000)
    found = gate_result_of(lost_Q - lost_Q.mean() + 0.0045)
    assert (found.outcome, found.is_within_limit, found.queries_needed) == ("NOT SHOWN", True, None)
    assert (
        "of 2000 classes, enough to pass a file that loses nothing, but this one is too near the limit: mAP is 0.45"
        in str(found.not_shown)
    )


def test_a_loss_is_paired_so_that_hard_and_easy_queries_do_not_blur_it() -> None:
    draw = np.random.default_rng(0)
    before_Q = draw.uniform(size=300)
    after_Q = before_Q - draw.normal(0.006, 0.01, size=300)
    before, after = (scored(value_Q, range(300)) for value_Q in (before_Q, after_Q))
    low, high = measure_map_loss(before, after).ci95
    assert 0.004 < low < high < 0.008


def test_queries_of_one_class_count_as_one_where_they_lose_together() -> None:
    class_K = np.random.default_rng(0).normal(0.0, 0.03, size=50)
    class_Q = np.repeat(np.arange(50), 40)
    lost_Q = (class_K - class_K.mean())[class_Q]
    shuffled_Q = np.random.default_rng(1).permutation(lost_Q)
    together, apart = gate_result_of(lost_Q, class_Q.tolist()), gate_result_of(shuffled_Q, class_Q.tolist())
    assert (together.outcome, apart.outcome) == ("NOT SHOWN", "passed")
    assert together.map_loss is not None
    half_width = 1.96 * class_K.std() / np.sqrt(50)
    assert together.map_loss.ci95[1] == pytest.approx(half_width, rel=0.1)


@pytest.mark.parametrize(("num_classes", "outcome"), [(10, "NOT SHOWN"), (39, "NOT SHOWN"), (40, "passed")])
def test_many_queries_of_few_classes_show_nothing_of_other_classes(num_classes: int, outcome: str) -> None:
    class_Q = np.repeat(np.arange(num_classes), 50).tolist()
    assert gate_result_of(np.zeros(50 * num_classes), class_Q).outcome == outcome


def test_a_loss_in_fewer_than_five_classes_is_refused_only_where_all_of_it_is_above_the_limit() -> None:
    lost_Q = np.random.default_rng(0).normal(0.0, 0.02, size=100)
    lost_Q -= lost_Q.mean()
    for lost, outcome in ((0.007, "NOT SHOWN"), (0.1, "REFUSED")):
        assert gate_result_of(lost_Q + lost, ["a"] * 100).outcome == outcome
    assert gate_result_of(lost_Q + 0.007, np.arange(100).tolist()).outcome == "REFUSED"


def file_with(loss: MapLoss, **more: object) -> BundleFile:
    facts = {"path": "model.int8.onnx", "sha256": 64 * "0", "bytes": 1, "runtime": "onnxruntime", "precision": "int8"}
    return BundleFile.model_validate({**facts, "retrieval": {"map_loss": loss.model_dump()}, **more})


def test_the_entry_in_the_bundle_says_what_was_shown() -> None:
    loss = loss_of(np.zeros(16))
    assert loss.model_dump() == {
        "value": 0.0,
        "ci95": (0.0, 0.0),
        "limit": 0.005,
        "shown": False,
        "matched_queries": 16,
        "classes": 16,
        "queries_needed": 300,
        "classes_needed": 40,
    }
    assert list(file_with(loss).not_shown) == ["onnxruntime"]
    assert file_with(loss_of(np.zeros(400))).not_shown == {}
    assert file_with(loss, accepted_worse=("cosine",)).not_shown == {}
    check = {"parity": GOOD.model_dump(), "retrieval": {"map_loss": loss.model_dump()}, "passed": True}
    assert list(file_with(loss, runtimes={"openvino": check}).not_shown) == ["onnxruntime", "openvino"]
    refused = file_with(loss, runtimes={"openvino": {**check, "passed": False}})
    assert list(refused.not_shown) == ["onnxruntime"]
    assert file_remarks(refused)[-1].endswith("; in openvino **refused**.")


def test_losses_of_bundles_without_these_keys_are_read_and_say_nothing_of_what_was_shown() -> None:
    (file,) = (file for file in read_bundle(default_bundle()).files if file.precision == "int8")
    retrieval = {"queries": 296, "split": "val", "map_loss": {"value": 0.0043, "ci95": [-0.0008, 0.0092]}}
    check = {"parity": GOOD.model_dump(), "retrieval": retrieval, "passed": True}
    earlier = BundleFile.model_validate({**file.model_dump(), "retrieval": retrieval, "runtimes": {"openvino": check}})
    assert earlier.map_loss is not None
    assert earlier.map_loss.value == pytest.approx(0.0043)
    assert (earlier.map_loss.shown, earlier.not_shown) == (None, {})
    assert map_loss_in(None) is None
    assert map_loss_in({"map_loss": {"value": "?"}}) is None
