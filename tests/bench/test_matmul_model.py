from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from edgeembed.bench.matmul_model import product_model
from edgeembed.bench.roofline import ONNX_TYPES


@pytest.mark.parametrize("precision", ONNX_TYPES)
def test_the_encoded_file_is_a_valid_model_that_computes_the_product(precision: str) -> None:
    operator, *types = ONNX_TYPES[precision]
    rng = np.random.default_rng(0)
    x, weight = (rng.integers(0, 5, (200, 200)).astype(kind) for kind in types[:2])  # 200 takes two bytes to encode
    y = x.astype(np.int64) @ weight.astype(np.int64)
    encoded = product_model(operator, x, weight, y.astype(types[2]))
    onnx.checker.check_model(onnx.load_from_string(encoded), full_check=True)
    session = onnxruntime.InferenceSession(encoded, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    assert found.dtype == types[2]
    np.testing.assert_allclose(found, y, rtol=1e-3 if precision == "fp16" else 0)
