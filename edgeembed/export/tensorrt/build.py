"""Builds a TensorRT engine from an ONNX file, with 8.5, 10 or 11, and reads back the precision of its layers.

The types in the graph decide in which precision a layer computes.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import tensorrt

from edgeembed.device.runtimes.tensorrt import TensorRtLog
from edgeembed.errors import CheckFailed
from edgeembed.export.recipe import EngineSection
from edgeembed.export.tensorrt.rewrite import parse_version, rewrite_for_tensorrt, unsupported_features
from edgeembed.files import write_atomically

log = logging.getLogger(__name__)

PRODUCT_LAYERS = ("Convolution", "CaskConvolution", "CaskGemmConvolution", "CaskDeconvolution", "Gemm", "CaskGemm",
            "MatrixMultiply", "FullyConnected", "gemm", "conv")  # fmt: skip
"""The types of layers, as the engine inspector names them, that are a product with weights."""
TENSORRT_8_FLAGS = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8",)}
"""Before version 10 the builder chooses types itself, among those that its flags allow."""


def build_engine(model: onnx.ModelProto, precision: str, settings: EngineSection) -> bytes:
    """Builds the serialised engine (plan) of an exported file, for this GPU and this TensorRT, in minutes.

    Raises CheckFailed with the reason where the parser or the builder refuses the graph.
    """
    version = parse_version(tensorrt.__version__)
    graph = rewrite_for_tensorrt(model, version)
    # Before the parser, whose errors do not say which version would take the graph.
    if reasons := unsupported_features(graph, version):
        raise CheckFailed(f"TensorRT {tensorrt.__version__} does not take the {precision} file: {'; '.join(reasons)}")
    logger = TensorRtLog()
    builder = tensorrt.Builder(logger)
    network = builder.create_network(network_flags())
    parser = tensorrt.OnnxParser(network, logger)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        # Well below the 2 GB that a protobuf message may have.
        onnx.save(graph, path, save_as_external_data=graph.ByteSize() > 1_500_000_000)
        if not parser.parse_from_file(str(path)):
            errors = [parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
            raise CheckFailed(f"TensorRT {tensorrt.__version__} cannot parse the {precision} file: {'; '.join(errors)}")
        config = configure(builder, precision, settings)
        if not is_strongly_typed():
            set_layer_precisions(network, config)
        shape = tuple(int(side) for side in network.get_input(0).shape)[1:]
        profile = builder.create_optimization_profile()
        # Any batch from the first to the last can run; TensorRT makes the middle one fast.
        profile.set_shape("image", *((batch, *shape) for batch in (1, settings.opt_batch, settings.max_batch)))
        config.add_optimization_profile(profile)
        cache = use_timing_cache(config, settings.timing_cache)
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise CheckFailed(f"TensorRT {tensorrt.__version__} cannot build the {precision} engine: {logger.last_error}")
    if cache is not None and settings.timing_cache is not None:
        write_atomically(settings.timing_cache, bytes(cache.serialize()))
    return bytes(plan)


def parser_error(error: Any) -> str:
    """The text of a parser's error, with the node that caused it, which TensorRT 8 does not name."""
    where = f" ({error.node_operator()} {error.node_name()})" if hasattr(error, "node_name") else ""
    return f"{error.desc()}{where}"


def is_strongly_typed() -> bool:
    """Whether this version has strongly typed networks, which compute in the types of the graph."""
    return hasattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def network_flags() -> int:
    """Creation flags of the network: strongly typed where there is that; TensorRT 8 needs the batch to be explicit."""
    flags = tensorrt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED if is_strongly_typed() else flags.EXPLICIT_BATCH)


def set_layer_precisions(network: Any, config: Any) -> None:
    """Makes every layer compute in the type that the parser gave its output, for versions without strong typing.

    Without this, the builder of 8.6 computes the norm of a vector in float16, which overflows: 42 % of the embeddings
    of a MobileNetV4-small were zeros. It also leaves single convolutions of an fp16 file in float32.
    """
    config.set_flag(tensorrt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    # Their types follow from the graph: constants, shapes, and int8 behind a QUANTIZE.
    kept = (tensorrt.LayerType.CONSTANT, tensorrt.LayerType.SHAPE, tensorrt.LayerType.QUANTIZE)
    for position in range(network.num_layers):
        layer = network.get_layer(position)
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        types = {output.dtype for output in outputs if not output.is_shape_tensor}
        if layer.type in kept or len(types) != 1 or not types <= {tensorrt.float32, tensorrt.float16}:
            continue
        (dtype,) = types
        layer.precision = dtype
        for i in range(layer.num_outputs):
            layer.set_output_type(i, dtype)


def configure(builder: Any, precision: str, settings: EngineSection) -> Any:
    """The configuration of a builder for a precision."""
    config = builder.create_builder_config()
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED  # so that `inspect_engine` sees types
    sources = tensorrt.TacticSource  # only these two, so that running the engine needs no cuBLAS and no cuDNN
    config.set_tactic_sources(1 << int(sources.EDGE_MASK_CONVOLUTIONS) | 1 << int(sources.JIT_CONVOLUTIONS))
    if precision == "fp32":
        config.clear_flag(tensorrt.BuilderFlag.TF32)  # it has 10 bits of fraction, fp32 has 23
    if not is_strongly_typed():
        for name in TENSORRT_8_FLAGS[precision]:
            config.set_flag(getattr(tensorrt.BuilderFlag, name))
    if settings.workspace_mb is not None:
        config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, settings.workspace_mb * 2**20)
    if settings.hardware_compatible:
        config.hardware_compatibility_level = tensorrt.HardwareCompatibilityLevel.AMPERE_PLUS
    if settings.version_compatible:
        config.set_flag(tensorrt.BuilderFlag.VERSION_COMPATIBLE)
    return config


def use_timing_cache(config: Any, path: Path | None) -> Any:
    """Lets a build use the measurements of earlier builds on this GPU; returns None without a `path`."""
    if path is None:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    # The measurements of another GPU are refused, not used.
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


@dataclass(frozen=True, kw_only=True)
class EngineLayers:
    """The layers of an engine: how many, how many products with weights by type, and the names of those in float32."""

    layers: int
    products: Mapping[str, int]
    float32_products: tuple[str, ...]


def inspect_engine(plan: bytes) -> EngineLayers:
    """Reads back in which types the layers of a plan compute."""
    logger = TensorRtLog()
    runtime = tensorrt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise CheckFailed(f"TensorRT {tensorrt.__version__} cannot open what it built: {logger.last_error}")
    inspector = engine.create_engine_inspector()
    information = inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON)
    # strict=False, because names of layers may hold control characters.
    return count_products(json.loads(information, strict=False)["Layers"])


def count_products(layers: Sequence[Any]) -> EngineLayers:
    """Counts products with weights by the type that they compute in, which is the type of their inputs."""
    products: Counter[str] = Counter()
    in_float32: list[str] = []
    for layer in layers:
        if not isinstance(layer, dict) or not is_product(layer):
            continue
        dtype = type_of(layer)
        products[dtype] += 1
        if dtype == "fp32":
            in_float32.append(str(layer.get("Name")))
    return EngineLayers(layers=len(layers), products=dict(products), float32_products=tuple(in_float32))


def product_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The convolutions and matrix products of a file."""
    return [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]


def float32_products(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes of a file that multiply by float32 weights."""
    float32 = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    return {node.name for node in product_nodes(model) if node.input[1] in float32}


def is_product(layer: Mapping[str, Any]) -> bool:
    """Whether a layer, as the inspector lists it, multiplies by weights."""
    types = {str(layer.get(key, "")) for key in ("LayerType", "ParameterType")}
    return not types.isdisjoint(PRODUCT_LAYERS) or "Weights" in layer


def type_of(layer: Mapping[str, Any]) -> str:
    """The type of a layer's weights and first input: int8, fp16, bf16, fp8, or fp32 for any other text."""
    # Read with care: the inspector's JSON differs between versions.
    weights = layer.get("Weights")
    weights_type = str(weights.get("Type", "")) if isinstance(weights, dict) else ""
    inputs = [str(port.get("Format/Datatype", "")) for port in layer.get("Inputs", ()) if isinstance(port, dict)]
    text = f"{weights_type} {' '.join(inputs[:1])}".lower()
    for word, name in (("int8", "int8"), ("fp16", "fp16"), ("half", "fp16"), ("bf16", "bf16"), ("fp8", "fp8")):
        if word in text:
            return name
    return "fp32"


def require_precision(engine: EngineLayers, precision: str, model: onnx.ModelProto) -> None:
    """Raises CheckFailed for an engine that computes in another type than its file.

    An int8 file may hold operators in float32; an int8 engine without any product in int8 is an error.
    """
    if not engine.products:
        log.warning(
            "%s engine: the inspector finds no product among its %d layers: their types are unknown",
            precision,
            engine.layers,
        )
    float16 = {node.name for node in product_nodes(model)} - float32_products(model)
    # A fused layer is named after all its nodes: "A + B".
    wrong = [name for name in engine.float32_products if float16 & set(name.split(" + "))]
    if precision == "fp16" and wrong:
        raise CheckFailed(f"the fp16 engine computes {len(wrong)} products in fp32: {', '.join(wrong[:3])}")
    if precision == "int8" and engine.products and not engine.products.get("int8"):
        raise CheckFailed(f"the int8 engine computes no product in int8: {dict(engine.products)}")


def engine_facts(settings: EngineSection, engine: EngineLayers) -> dict[str, Any]:
    """What the builder knows of `engine` in bundle.json."""
    return {
        "tensorrt": tensorrt.__version__,
        "max_batch": settings.max_batch,
        "hardware_compatible": settings.hardware_compatible,
        "version_compatible": settings.version_compatible,
        "layers": engine.layers,
        "products": dict(engine.products),
    }
