"""ONNX to a TensorRT plan, for 8.5, 10 and 11 alike: the graph says the precision, and what was built is read back."""

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
from edgeembed.export.tensorrt.graph import for_tensorrt, parse_version, refusals
from edgeembed.files import write_atomically

log = logging.getLogger(__name__)

PRODUCTS = ("Convolution", "CaskConvolution", "CaskGemmConvolution", "CaskDeconvolution", "Gemm", "CaskGemm",
            "MatrixMultiply", "FullyConnected", "gemm", "conv")  # fmt: skip
"""Types of layers, as the inspector names them, that are nothing but a product with weights."""
FLAGS_8 = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8",)}
"""Before version 10 the builder chooses types itself, among those that its flags allow."""


def build_engine(model: onnx.ModelProto, precision: str, settings: EngineSection) -> bytes:
    """The plan of an exported file, for this GPU and this TensorRT; minutes of work on the GPU.

    Raises CheckFailed with the reason where the parser or the builder refuses the graph.
    """
    version = parse_version(tensorrt.__version__)
    graph = for_tensorrt(model, version)
    if reasons := refusals(graph, version):
        raise CheckFailed(f"TensorRT {tensorrt.__version__} does not take the {precision} file: {'; '.join(reasons)}")
    heard = TensorRtLog()
    builder = tensorrt.Builder(heard)
    network = builder.create_network(network_flags())
    parser = tensorrt.OnnxParser(network, heard)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(graph, path, save_as_external_data=graph.ByteSize() > 1_500_000_000)
        if not parser.parse_from_file(str(path)):
            errors = [parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
            raise CheckFailed(f"TensorRT {tensorrt.__version__} cannot parse the {precision} file: {'; '.join(errors)}")
        config = configure(builder, precision, settings)
        if not is_strongly_typed():
            obey_types(network, config)
        shape = tuple(int(side) for side in network.get_input(0).shape)[1:]
        profile = builder.create_optimization_profile()
        profile.set_shape("image", *((batch, *shape) for batch in (1, settings.opt_batch, settings.max_batch)))
        config.add_optimization_profile(profile)
        cache = use_timing_cache(config, settings.timing_cache)
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise CheckFailed(f"TensorRT {tensorrt.__version__} cannot build the {precision} engine: {heard.last_error}")
    if cache is not None and settings.timing_cache is not None:
        write_atomically(settings.timing_cache, bytes(cache.serialize()))
    return bytes(plan)


def parser_error(error: Any) -> str:
    """What the parser says of a graph, with the node that it means, which 8 does not name."""
    where = f" ({error.node_operator()} {error.node_name()})" if hasattr(error, "node_name") else ""
    return f"{error.desc()}{where}"


def is_strongly_typed() -> bool:
    """Whether this version can be told to compute in the types that the graph says."""
    return hasattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def network_flags() -> int:
    """Types as the graph says them, where a version knows of that; 8 needs to hear that the batch is a dimension."""
    flags = tensorrt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED if is_strongly_typed() else flags.EXPLICIT_BATCH)


def obey_types(network: Any, config: Any) -> None:
    """Has every layer compute in the type that the parser gave its output, where a version is not strongly typed.

    Left to itself the builder of 8.6 takes the norm of a vector in float16, which overflows: 42 % of the embeddings of
    a MobileNetV4-small were zeros; and it leaves single convolutions of an fp16 file in float32.
    """
    config.set_flag(tensorrt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    kept = (tensorrt.LayerType.CONSTANT, tensorrt.LayerType.SHAPE, tensorrt.LayerType.QUANTIZE)
    for position in range(network.num_layers):
        layer = network.get_layer(position)
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        types = {output.dtype for output in outputs if not output.is_shape_tensor}
        if layer.type in kept or len(types) != 1 or not types <= {tensorrt.float32, tensorrt.float16}:
            continue
        wanted = types.pop()
        layer.precision = wanted
        for i in range(layer.num_outputs):
            layer.set_output_type(i, wanted)


def configure(builder: Any, precision: str, settings: EngineSection) -> Any:
    """A builder's configuration for a precision."""
    config = builder.create_builder_config()
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED  # or types could not be read back
    sources = tensorrt.TacticSource  # these alone: an engine needs no cuBLAS and no cuDNN beside it
    config.set_tactic_sources(1 << int(sources.EDGE_MASK_CONVOLUTIONS) | 1 << int(sources.JIT_CONVOLUTIONS))
    if precision == "fp32":
        config.clear_flag(tensorrt.BuilderFlag.TF32)  # 10 bits of fraction are not fp32
    if not is_strongly_typed():
        for name in FLAGS_8[precision]:
            config.set_flag(getattr(tensorrt.BuilderFlag, name))
    if settings.workspace_mb is not None:
        config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, settings.workspace_mb * 2**20)
    if settings.hardware_compatible:
        config.hardware_compatibility_level = tensorrt.HardwareCompatibilityLevel.AMPERE_PLUS
    if settings.version_compatible:
        config.set_flag(tensorrt.BuilderFlag.VERSION_COMPATIBLE)
    return config


def use_timing_cache(config: Any, path: Path | None) -> Any:
    """The measurements of earlier builds on this GPU; None where none are asked for."""
    if path is None:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """What an engine really computes with: how many products with weights are in which type, by the inspector."""

    layers: int
    products: Mapping[str, int]
    float32_products: tuple[str, ...]


def inspect_engine(plan: bytes) -> Inspected:
    """Reads the types of a plan's layers back."""
    heard = TensorRtLog()
    runtime = tensorrt.Runtime(heard)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise CheckFailed(f"TensorRT {tensorrt.__version__} cannot open what it built: {heard.last_error}")
    inspector = engine.create_engine_inspector()
    said = inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON)
    return inspected(json.loads(said, strict=False)["Layers"])


def inspected(layers: Sequence[Any]) -> Inspected:
    """Counts products with weights by the type they compute in, which is that of what they read."""
    found: Counter[str] = Counter()
    in_float32: list[str] = []
    for layer in layers:
        if not isinstance(layer, dict) or not is_product(layer):
            continue
        kind = type_of(layer)
        found[kind] += 1
        if kind == "fp32":
            in_float32.append(str(layer.get("Name")))
    return Inspected(layers=len(layers), products=dict(found), float32_products=tuple(in_float32))


def product_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]


def float32_products(model: onnx.ModelProto) -> set[str]:
    """Names of the products that multiply by float32 weights in a file."""
    single = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    return {node.name for node in product_nodes(model) if node.input[1] in single}


def is_product(layer: Mapping[str, Any]) -> bool:
    kind = str(layer.get("LayerType", ""))
    return kind in PRODUCTS or str(layer.get("ParameterType", "")) in PRODUCTS or "Weights" in layer


def type_of(layer: Mapping[str, Any]) -> str:
    weights = layer.get("Weights")
    kind = str(weights.get("Type", "")) if isinstance(weights, dict) else ""
    reads = [str(port.get("Format/Datatype", "")) for port in layer.get("Inputs", ()) if isinstance(port, dict)]
    text = f"{kind} {' '.join(reads[:1])}".lower()
    for said, name in (("int8", "int8"), ("fp16", "fp16"), ("half", "fp16"), ("bf16", "bf16"), ("fp8", "fp8")):
        if said in text:
            return name
    return "fp32"


def require_precision(found: Inspected, precision: str, model: onnx.ModelProto) -> None:
    """Raises CheckFailed for an engine that computes in another type than its file says.

    In an int8 engine what was left in float stays so; that nothing at all became int8 is an error.
    """
    if not found.products:
        log.warning(
            "%s engine: the inspector names no product of its %d layers: types not seen", precision, found.layers
        )
    half = {node.name for node in product_nodes(model)} - float32_products(model)
    wrong = [name for name in found.float32_products if half & set(name.split(" + "))]
    if precision == "fp16" and wrong:
        raise CheckFailed(f"the fp16 engine computes {len(wrong)} products in fp32: {', '.join(wrong[:3])}")
    if precision == "int8" and found.products and not found.products.get("int8"):
        raise CheckFailed(f"the int8 engine computes no product in int8: {dict(found.products)}")


def facts(settings: EngineSection, found: Inspected) -> dict[str, Any]:
    """Of `engine` in bundle.json, what the builder knows."""
    return {
        "tensorrt": tensorrt.__version__,
        "max_batch": settings.max_batch,
        "hardware_compatible": settings.hardware_compatible,
        "version_compatible": settings.version_compatible,
        "layers": found.layers,
        "products": dict(found.products),
    }
