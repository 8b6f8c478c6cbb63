"""The first convolution multiplies int8 weights by the bytes of the image, with weights rounded together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from PIL import Image

from edgeembed.export.graph import Graph, copy_model
from edgeembed.export.int8.quantise import Quantiser, embed, mean_cosine_distance
from edgeembed.export.int8.stem import patch_moments, round_with_feedback, stem_chain
from tests.export.int8.models import MINMAX, PIXELS_32, PIXELS_64, exported_student


@pytest.mark.parametrize("name", ["resnet_xs", "test_vit", "mobilenetv4_s"])
def test_the_first_convolution_multiplies_the_bytes_of_the_image(name: str, tmp_path: Path) -> None:
    model = exported_student(name)
    quantiser = Quantiser(model, PIXELS_32, tmp_path, MINMAX)
    (stem,) = (node.name for node in stem_chain(Graph(model))[-1:])
    quantised = quantiser.quantise("minmax", only=[stem])
    op_types = [node.op_type for node in quantised.graph.node]
    assert not {"Cast", "Sub"} & set(op_types[: op_types.index("Conv")])
    constants = {tensor.name: tensor.data_type for tensor in quantised.graph.initializer}
    assert TensorProto.INT8 in constants.values()
    assert set(constants) <= {name for node in quantised.graph.node for name in node.input}
    assert mean_cosine_distance(quantised, PIXELS_32, embed(model, PIXELS_32)) < 0.002
    for keep_float in ([stem], []):
        op_types = [node.op_type for node in quantiser.quantise("minmax", keep_float=keep_float).graph.node]
        assert ("Sub" in op_types[: op_types.index("Conv")]) is bool(keep_float)


def test_weights_that_are_rounded_together_change_products_less_than_each_on_its_own(
    convolutional: onnx.ModelProto,
) -> None:
    """On pixels that are like their neighbours, as those of photographs are."""
    smooth_NHWC = np.asarray(Image.fromarray(PIXELS_64[0, :8, :8]).resize((64, 64), Image.Resampling.BICUBIC))[None]
    convolution = stem_chain(Graph(convolutional))[-1]
    mean_P, covariance_PP = patch_moments(smooth_NHWC, 100, (3, 3), convolution)
    patches = np.pad(smooth_NHWC[0] - 100.0, ((1, 1), (1, 1), (0, 0)))
    assert mean_P.shape == (27,)
    np.testing.assert_allclose(patches[1::2, 1::2, 2].mean(), mean_P.reshape(3, 3, 3)[2, 1, 1], atol=20)
    weight_KP = np.random.default_rng(0).normal(0, 9, (16, 27))
    errors = []
    for rounded_KP in (np.round(weight_KP), round_with_feedback(weight_KP, covariance_PP, 127)):
        assert np.abs(rounded_KP - weight_KP).max() < 4
        error_KP = rounded_KP - weight_KP
        errors.append(np.einsum("kp,pq,kq->k", error_KP, covariance_PP, error_KP).mean())
    assert errors[1] < errors[0] / 3
    assert np.abs(round_with_feedback(100 * weight_KP, covariance_PP, 64)).max() == 64


def test_only_a_graph_that_casts_and_shifts_the_image_has_a_stem(convolutional: onnx.ModelProto) -> None:
    assert [node.op_type for node in stem_chain(Graph(convolutional))] == ["Transpose", "Cast", "Sub", "Conv"]
    scaled = copy_model(convolutional)
    shift = next(node for node in scaled.graph.node if node.op_type == "Sub")
    shift.op_type = "Mul"
    assert stem_chain(Graph(scaled)) == []
