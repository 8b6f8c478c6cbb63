"""Builds engines with our builder and TensorRT for RTX, which needs no GPU to build; prints JSON.

Usage: python build_with_rtx.py VERSION [--cache FILE] MODEL...      MODEL: NAME.PRECISION.onnx
TensorRT for RTX has the API, the ONNX parser and the strongly typed networks of the TensorRT of the same time, and
builds without a GPU what a GPU completes later. VERSION is that of this TensorRT; our modules see it as their version.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import tensorrt_rtx_bindings as real

from edgeembed.errors import CheckFailed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("version")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("models", type=Path, nargs="*")
    given = parser.parse_intermixed_args()
    module = types.ModuleType("tensorrt")
    module.__dict__.update({**vars(real), "__version__": given.version})
    sys.modules["tensorrt"] = module
    from edgeembed.export.recipe import EngineSection
    from edgeembed.export.tensorrt import build as builder
    from edgeembed.export.tensorrt.rewrite import SUPPORTED_SINCE

    messages: list[str] = []
    # TensorRT uses the first logger that it gets for the whole process.
    builder.TensorRtLog.log = lambda log, severity, message: collect(log, severity, message, messages)  # type: ignore[method-assign]
    found: dict[str, Any] = {"unknown": unknown_operators(builder, SUPPORTED_SINCE), "engines": {}}
    settings = EngineSection(opt_batch=2, workspace_mb=256, timing_cache=given.cache)
    for path in given.models:
        model = onnx.load(path)
        del messages[:]
        try:
            plan = builder.build_engine(model, path.name.split(".")[1], settings)
        except CheckFailed as error:
            found["engines"][path.name] = {"refused": str(error)}
            continue
        weights = [line for line in messages if line.startswith("Total Weights Memory")]
        found["engines"][path.name] = {
            "plan_bytes": len(plan),
            "weights_bytes": int(re.findall(r"\d+", weights[0])[0]),
            "float32_products": len(builder.float32_products(model)),
            "products": products(builder, model, builder.parse_version(given.version)),
        }
    print(json.dumps(found))


def collect(log: Any, severity: Any, message: str, messages: list[str]) -> None:
    if severity in (real.ILogger.ERROR, real.ILogger.INTERNAL_ERROR):
        log.last_error = " ".join(message.split())
    messages.append(message)


def empty_network(builder: Any) -> tuple[Any, Any]:
    """Returns a network, and the parser that fills it."""
    log = builder.TensorRtLog()
    network = real.Builder(log).create_network(builder.network_flags())
    return network, real.OnnxParser(network, log)


def unknown_operators(builder: Any, operators: Any) -> list[str]:
    """Returns those of our supported operators that the parser does not know."""
    _, parser = empty_network(builder)
    return [name for name in operators if not parser.supports_operator(name)]


def products(builder: Any, model: onnx.ModelProto, version: tuple[int, int]) -> dict[str, int]:
    """Counts the convolutions and matrix products of the parsed network by the type of their input."""
    network, parser = empty_network(builder)
    assert parser.parse(builder.rewrite_for_tensorrt(model, version).SerializeToString())
    layers = [network.get_layer(position) for position in range(network.num_layers)]
    types = (real.LayerType.CONVOLUTION, real.LayerType.MATRIX_MULTIPLY)
    return dict(Counter(layer.get_input(0).dtype.name for layer in layers if layer.type in types))


if __name__ == "__main__":
    main()
