"""No sum of two bytes lies halfway between two integers of the result, so that all processors round it alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeembed.export.graph import Graph
from edgeembed.export.int8.quantise import Quantiser, embed, mean_cosine_distance
from edgeembed.export.int8.residual_sums import DENOMINATOR
from tests.export.int8.models import MINMAX, PIXELS_32, exported_student, is_produced_by


def test_no_sum_of_two_bytes_is_a_tie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantiser = Quantiser(exported_student("mobilenetv4_s"), PIXELS_32, tmp_path, MINMAX)
    after = quantiser.quantise("minmax")
    monkeypatch.setattr("edgeembed.export.int8.quantise.avoid_rounding_ties", lambda _: None)
    before = quantiser.quantise("minmax")
    distances = [tie_distances(Graph(model)) for model in (before, after)]
    assert len(distances[0]) == len(distances[1]) > 2
    assert min(distances[0]) < 1e-4
    assert min(distances[1]) > 0.4 / DENOMINATOR
    assert mean_cosine_distance(after, PIXELS_32, embed(before, PIXELS_32)) < 0.01
    graph_before, graph_after = Graph(before), Graph(after)
    for name in graph_before.constants:
        if name.endswith("_scale"):
            wider = graph_after.array(name) / graph_before.array(name)
            assert 0.9999 < wider.min() <= wider.max() < 1.05, name


def tie_distances(graph: Graph) -> list[float]:
    """For each quantised Add, how close any sum of two bytes comes to halfway between two integers of the result."""
    distances = []
    for node in graph.nodes:
        if node.op_type != "Add" or not all(is_produced_by(graph, name, "DequantizeLinear") for name in node.input):
            continue
        first, second = (
            (np.arange(256) - float(graph.array(summand.input[2]))) * float(graph.array(summand.input[1]))
            for summand in map(graph.producer, node.input)
            if summand is not None
        )
        (quantize,) = graph.consumers(node.output[0])
        sums = (first[:, None] + second[None]) / float(graph.array(quantize.input[1]))
        is_not_clipped = np.abs(sums + float(graph.array(quantize.input[2])) - 127.5) < 128
        distances.append(float(np.abs(sums - np.floor(sums) - 0.5)[is_not_clipped].min()))
    return distances
