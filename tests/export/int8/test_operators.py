"""Which operators are quantised: products with weights are; attention, norms and the unit norm stay in float32."""

from __future__ import annotations

import pytest

from edgeembed.export.graph import Graph
from edgeembed.export.int8.operators import attention_and_norms, choose_operators, multiplied_depthwise, weight_products
from tests.export.int8.models import PIXELS_32, PIXELS_64, exported_student, is_produced_by, to_int8


def test_only_products_with_weights_are_quantised_in_a_transformer() -> None:
    model = exported_student("test_vit")
    graph = Graph(model)
    products = [node for node in graph.nodes if node.op_type in ("MatMul", "Gemm")]
    assert 0 < len(weight_products(graph)) < len(products) or all(node.op_type == "Gemm" for node in products)
    quantised = Graph(to_int8(model, PIXELS_32))
    for node in quantised.nodes:
        if node.op_type in ("Softmax", "LayerNormalization", "Gelu", "Add"):
            assert not is_produced_by(quantised, node.input[0], "DequantizeLinear"), node.name


def test_linear_attention_between_convolutions_stays_in_float32() -> None:
    quantised = Graph(to_int8(exported_student("efficientvit_b0", 64), PIXELS_64))
    products = [node for node in quantised.nodes if node.op_type == "MatMul"]
    assert len(products) == 8
    assert not any(is_produced_by(quantised, name, "DequantizeLinear") for node in products for name in node.input)
    assert not attention_and_norms(Graph(exported_student("mobilenetv4_s", 64)))


@pytest.mark.parametrize("name", ["efficientvit_m0", "mobilevit_xxs", "convnext_atto"])
def test_networks_with_convolutions_and_attention_or_norms_are_quantised_in_both(name: str) -> None:
    model = exported_student(name, 64)
    quantised_model = to_int8(model, PIXELS_64)
    assert quantised_model.ByteSize() < 0.3 * model.ByteSize()
    quantised, with_weights = Graph(quantised_model), set(weight_products(Graph(model)))
    for node in quantised.nodes:
        if node.op_type == "Softmax" or (node.op_type == "MatMul" and node.name not in with_weights):
            assert not any(is_produced_by(quantised, name, "DequantizeLinear") for name in node.input), node.name
        if node.op_type in ("MatMul", "Softmax"):
            consumers = quantised.consumers(node.output[0])
            assert all(consumer.op_type != "QuantizeLinear" for consumer in consumers), node.name


@pytest.mark.parametrize("name", ["mobilenetv4_s", "repvit_m1"])
def test_the_input_of_the_unit_norm_is_not_quantised(name: str) -> None:
    quantised = Graph(to_int8(exported_student(name), PIXELS_32))
    norm = next(node for node in quantised.nodes if node.op_type == "ReduceL2")
    assert is_produced_by(quantised, norm.input[0], "Gemm")


def test_depthwise_convolutions_with_several_outputs_per_channel_stay_in_float32() -> None:
    model = exported_student("fastvit_t8")
    names = multiplied_depthwise(Graph(model))
    assert len(names) == 4
    assert not set(names) & set(choose_operators(model).nodes)
