"""Calibration methods, the order in which operators return to float32, and weights of 7 and 8 bits."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeembed.export.graph import Graph
from edgeembed.export.int8.quantise import Quantiser, embed, int8_candidates, mean_cosine_distance
from edgeembed.export.recipe import Int8Section
from tests.export.int8.models import MINMAX, PIXELS_32, exported_student, int8_weights, is_produced_by


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_every_calibration_method_gives_a_model_that_runs(convolutional: onnx.ModelProto, method: str) -> None:
    settings = Int8Section(calibration=method)  # type: ignore[arg-type]
    candidate = next(int8_candidates(convolutional, PIXELS_32, PIXELS_32, settings))
    assert candidate.quantisation.calibration == method
    assert mean_cosine_distance(candidate.model, PIXELS_32, embed(convolutional, PIXELS_32)) < 0.2
    assert {item.key: item.value for item in candidate.model.metadata_props} == {"space_id": "x"}


def test_the_calibration_method_that_moves_embeddings_least_is_chosen(
    convolutional: onnx.ModelProto, tmp_path: Path
) -> None:
    candidate = next(int8_candidates(convolutional, PIXELS_32, PIXELS_32, Int8Section()))
    quantiser = Quantiser(convolutional, PIXELS_32, tmp_path, Int8Section())
    expected_ND = embed(convolutional, PIXELS_32)
    distances = {
        method: mean_cosine_distance(quantiser.quantise(method), PIXELS_32, expected_ND)
        for method in ("minmax", "percentile", "entropy")
    }
    assert candidate.quantisation.calibration == min(distances, key=lambda method: distances[method])


def test_calibration_does_not_depend_on_the_batch_size(
    convolutional: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []
    for batch in (3, 12):
        monkeypatch.setattr("edgeembed.export.int8.quantise.BATCH", batch)
        (folder := tmp_path / str(batch)).mkdir()
        texts.append(Quantiser(convolutional, PIXELS_32, folder, MINMAX).calibration_file("minmax").read_text())
    assert texts[0] == texts[1]


def test_operators_return_to_float32_worst_first_until_no_more_may(convolutional: onnx.ModelProto) -> None:
    tried = list(int8_candidates(convolutional, PIXELS_32, PIXELS_32, MINMAX))
    counts = [len(candidate.quantisation.float_operators) for candidate in tried]
    assert counts == [0, *(2**power for power in range(len(counts) - 1))]
    assert len(counts) > 2
    for fewer, more in itertools.pairwise(candidate.quantisation.float_operators for candidate in tried[1:]):
        assert fewer == more[: len(fewer)]
    expected_ND = embed(convolutional, PIXELS_32)
    first, last = (mean_cosine_distance(tried[i].model, PIXELS_32, expected_ND) for i in (0, -1))
    assert last < first
    graph = Graph(tried[1].model)
    (worst,) = (node for node in graph.nodes if node.name == tried[1].quantisation.float_operators[0])
    if worst.op_type in ("Conv", "Gemm"):
        assert not is_produced_by(graph, worst.input[1], "DequantizeLinear")


def test_a_limit_of_float32_weights_keeps_the_file_small(convolutional: onnx.ModelProto) -> None:
    def sizes(most_weights: float) -> list[int]:
        settings = MINMAX.model_copy(update={"max_float_weight_share": most_weights})
        tried = list(int8_candidates(convolutional, PIXELS_32, PIXELS_32, settings))
        return [candidate.model.ByteSize() for candidate in tried]

    int8, *without_limit = sizes(1.0)
    saved = convolutional.ByteSize() - int8
    assert without_limit[-1] > int8 + 0.1 * saved
    same, *limited = sizes(0.05)
    assert same == int8
    assert limited
    assert max(limited) < int8 + 0.1 * saved


@pytest.mark.parametrize("name", ["resnet_xs", "test_vit"])
def test_by_default_no_sum_of_two_products_leaves_16_bits(name: str, tmp_path: Path) -> None:
    """x86 CPUs without VNNI add them in 16 bits: in the first convolution, depthwise ones and matrix products."""
    candidate = Quantiser(exported_student(name), PIXELS_32, tmp_path, MINMAX).candidate("minmax")
    peaks = [int(np.abs(weight.astype(np.int32)).max()) for weight in int8_weights(candidate.model)]
    assert len(peaks) > 3
    assert max(peaks) == 64
    assert 2 * 255 * max(peaks) < 2**15
    assert (candidate.quantisation.reduce_range, candidate.quantisation.cpus) == (True, "any")


def test_8_bit_weights_are_recorded_to_need_int8_dot_products(convolutional: onnx.ModelProto, tmp_path: Path) -> None:
    candidate = Quantiser(convolutional, PIXELS_32, tmp_path, MINMAX, reduce_range=False).candidate("minmax")
    assert max(int(np.abs(weight.astype(np.int32)).max()) for weight in int8_weights(candidate.model)) == 127
    assert (candidate.quantisation.reduce_range, candidate.quantisation.cpus) == (False, "int8 dot products")


def test_7_bit_weights_are_tried_first_unless_the_recipe_says_otherwise() -> None:
    assert Int8Section().reduce_range_choices() == (True, False)
    assert Int8Section(reduce_range=True).reduce_range_choices() == (True,)
    assert Int8Section(reduce_range=False).reduce_range_choices() == (False,)
