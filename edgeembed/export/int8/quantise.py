"""int8 by QDQ: static ranges from real images, chosen by measurement, and back to float where int8 hurts.

Everything that has an integer kernel is quantised, but for attention, norms over channels and what lies about them,
where only products with a weight matrix are. A ViT is nothing else, behind its first convolution: residual sums, norms,
softmax, GELU and the attention products stay in float (ViT-B, all int8: 85.2 -> 5.0 top-1; weight products only: 84.5).
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator, save_tensors_data
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgeembed.arrays import FloatArray, UInt8Array
from edgeembed.device.bundle_schema import Quantisation
from edgeembed.export.int8.float_operators import hold_in_float
from edgeembed.export.int8.residual_sums import part_from_edges
from edgeembed.export.int8.stem import round_stem, stem_chain
from edgeembed.export.recipe import Int8Section
from edgeembed.progress import stage

log = logging.getLogger(__name__)

BATCH = 16
RANKING_IMAGES = 32
HISTOGRAM_IMAGES = 64  # every activation of an image is counted, which takes longer than computing it
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
FLOAT_STARTS = ("MatMul", "Softmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization")
NUM_BINS = {"minmax": 0, "percentile": 2048, "entropy": 256}  # the search of entropy takes the square of them


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """A QDQ model, and what was chosen for it."""

    model: onnx.ModelProto
    facts: Quantisation


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The quantiser writes advice to the root logger, and its progress to stdout, where only results belong."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)


def int8_attempts(
    model: onnx.ModelProto,
    calibration_NHWC: UInt8Array,
    choosing_NHWC: UInt8Array,
    settings: Int8Section,
    *,
    reduce_range: bool = True,
) -> Iterator[Quantised]:
    """Files to judge until one passes: the best calibration, then 1, 2, 4, ... of the worst operators in float.

    `reduce_range`: weights of 7 bits, whose products saturate on no CPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        quantiser = Quantiser(model, calibration_NHWC, Path(folder), settings, reduce_range=reduce_range)
        expected_ND = embed(model, choosing_NHWC)
        methods = list(METHODS) if settings.calibration == "auto" else [settings.calibration]
        harm = {}
        for method in methods:
            with stage(f"int8: ranges by {method}"):
                harm[method] = distance(quantiser.quantise(method), choosing_NHWC, expected_ND)
        best = min(harm, key=lambda method: harm[method])
        log.info("int8: %s (mean 1 - cosine: %s)", best, ", ".join(f"{name} {harm[name]:.5f}" for name in harm))
        yield quantiser.attempt(best)

        worst_first = quantiser.by_harm(best, choosing_NHWC[:RANKING_IMAGES], expected_ND[:RANKING_IMAGES])
        count, most = 1, int(settings.max_float_share * len(worst_first))
        while count <= most:
            log.info("int8: %d of %d operators back in float", count, len(worst_first))
            yield quantiser.attempt(best, worst_first[:count])
            count *= 2


class Quantiser:
    """A network made ready once, calibrated once a method, and quantised any number of times."""

    @quiet()
    def __init__(
        self,
        model: onnx.ModelProto,
        calibration_NHWC: UInt8Array,
        folder: Path,
        settings: Int8Section,
        *,
        reduce_range: bool = True,
    ) -> None:
        self.folder, self.settings, self.calibration_NHWC = folder, settings, calibration_NHWC
        self.ready = folder / "ready.onnx"
        onnx.save(model, folder / "float.onnx")
        quant_pre_process(str(folder / "float.onnx"), str(self.ready), skip_symbolic_shape=True)
        ready = onnx.load(self.ready)
        self.metadata = {item.key: item.value for item in model.metadata_props}
        self.layout = layout_of(ready)
        self.reduce_range = reduce_range

    def attempt(self, method: str, keep_float: Sequence[str] = ()) -> Quantised:
        return Quantised(
            model=self.quantise(method, keep_float=keep_float),
            facts=Quantisation(
                calibration=method,
                reduce_range=self.reduce_range,
                cpus="any" if self.reduce_range else "int8 dot products",
                float_operators=tuple(keep_float),
            ),
        )

    @quiet()
    def quantise(
        self, method: str, *, only: Collection[str] | None = None, keep_float: Collection[str] = ()
    ) -> onnx.ModelProto:
        """Weights int8 per channel, activations uint8; `only` some operators, or all but `keep_float`."""
        nodes = [name for name in self.layout.nodes if name not in keep_float and (only is None or name in only)]
        quantised = onnx.load(self._quantised(method, [name for name in nodes if name != self.layout.stem]))
        part_from_edges(quantised)
        hold_in_float(quantised)
        if self.layout.stem in nodes:
            round_stem(quantised, self.calibration_NHWC, reduce_range=self.reduce_range)
        del quantised.metadata_props[:]
        onnx.helper.set_model_props(quantised, self.metadata)
        return quantised

    def _quantised(self, method: str, nodes: list[str]) -> Path:
        """The file with these operators rounded by ONNX Runtime's quantiser, which takes none of them for all."""
        if not nodes:
            return self.ready
        rounded = self.folder / "int8.onnx"
        quantize_static(
            str(self.ready),
            str(rounded),
            None,
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=self.reduce_range,
            calibrate_method=METHODS[method],
            calibration_cache_path=self.ranges(method),
            op_types_to_quantize=list(self.layout.op_types),
            nodes_to_quantize=nodes,
            extra_options={"OpTypesToExcludeOutputQuantization": list(self.layout.float_outputs)},
        )
        return rounded

    @quiet()
    def ranges(self, method: str) -> Path:
        """The file with the ranges of a method, which is written when it is first asked for."""
        path = self.folder / f"{method}.json"
        if not path.exists():
            calibrator = create_calibrator(
                self.ready,
                list(self.layout.op_types),
                augmented_model_path=str(self.folder / "augmented.onnx"),
                calibrate_method=METHODS[method],
                extra_options={
                    "symmetric": False,
                    "num_bins": NUM_BINS[method],
                    "percentile": self.settings.percentile,
                },
            )
            pixels_NHWC = self.calibration_NHWC
            if method != "minmax":
                pixels_NHWC = pixels_NHWC[:: max(1, len(pixels_NHWC) // HISTOGRAM_IMAGES)]
            for start in range(0, len(pixels_NHWC), BATCH):  # or all activations of all images are kept
                calibrator.collect_data(OneBatch(pixels_NHWC[start : start + BATCH]))
            found = calibrator.compute_data()
            assert isinstance(found, TensorsData)
            save_tensors_data(found, path)
        return path

    def by_harm(self, method: str, pixels_NHWC: UInt8Array, expected_ND: FloatArray) -> list[str]:
        """Operators, the one first whose rounding alone moves embeddings most."""
        with stage(f"int8: the harm that each of {len(self.layout.nodes)} operators does alone"):
            harm = {
                name: distance(self.quantise(method, only=[name]), pixels_NHWC, expected_ND)
                for name in self.layout.nodes
            }
        return sorted(harm, key=lambda name: -harm[name])


class OneBatch(CalibrationDataReader):  # type: ignore[misc]
    """Feeds one batch of pixels to ONNX Runtime's calibration."""

    def __init__(self, pixels_NHWC: UInt8Array) -> None:
        self.waiting: list[UInt8Array] = [pixels_NHWC]

    def get_next(self) -> dict[str, UInt8Array] | None:
        return {"image": self.waiting.pop()} if self.waiting else None


def embed(model: onnx.ModelProto, pixels_NHWC: UInt8Array) -> FloatArray:
    """(N, D) of a model that was not written yet."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    batches = [pixels_NHWC[start : start + BATCH] for start in range(0, len(pixels_NHWC), BATCH)]
    return np.concatenate([session.run(["embedding"], {"image": batch})[0] for batch in batches])


def distance(model: onnx.ModelProto, pixels_NHWC: UInt8Array, expected_ND: FloatArray) -> float:
    """Mean of 1 - cosine; infinite where a model gives NaN."""
    cosine_N = np.einsum("nd,nd->n", embed(model, pixels_NHWC), expected_ND)
    return float(1.0 - cosine_N.mean()) if np.isfinite(cosine_N).all() else float("inf")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which operators become integer products: their names, the one that reads the image among them, and their types;
    and the types whose output is not rounded.
    """

    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    float_outputs: tuple[str, ...]
    stem: str | None = None


def weight_products(model: onnx.ModelProto) -> list[str]:
    """Names of MatMul and Gemm nodes that multiply by a constant matrix."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants]


def layout_of(model: onnx.ModelProto) -> Layout:
    """All that has an integer kernel, but for `float_nodes`, the tail, which makes unit vectors, and what it divides,
    the neck's product: rounded with one range for all images, a vector that is short before the norm has few of 256
    levels (cosine p1 of a MobileNetV4-small: .86 when rounded, .999 in float).

    The first convolution is `round_stem`'s, which needs no rounding of what it reads.
    """
    stem = next((node.name for node in stem_chain(model.graph)[-1:]), None)
    first = next((node.name for node in model.graph.node if node.op_type == "Conv"), None)
    tail = [node.name for node in model.graph.node if node.op_type in ("ReduceL2", "Div", "Clip", "Sub", "Cast")]
    excluded = {first, *tail, *multiplied_depthwise(model), *(float_nodes(model) - set(weight_products(model)))}
    types = tuple(sorted(set(QLinearOpsRegistry) | set(QDQRegistry)))  # what ONNX Runtime quantises unless told
    nodes = [node.name for node in model.graph.node if node.op_type in types and node.name not in excluded]
    return Layout(
        nodes=(*([stem] if stem else []), *nodes), op_types=types, float_outputs=("Gemm", "MatMul"), stem=stem
    )


def multiplied_depthwise(model: onnx.ModelProto) -> list[str]:
    """Names of convolutions that make several channels of each, for which ONNX Runtime has no int8 kernel: three of
    them took 5.4 ms of FastViT-T8's 9.7 in int8, and .55 in float32 (AMD EPYC, one thread).
    """
    dims = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv" and node.input[1] in dims]
    return [
        node.name
        for node in convolutions
        for item in node.attribute
        if item.name == "group" and dims[node.input[1]][1] == 1 < item.i < dims[node.input[1]][0]
    ]


def float_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of matrix products, softmax and norms over channels, of all that lies between them and the nearest
    convolutions, neck or residual sums, and of the residual sums that add what they made: attention and its like, of
    which the products with weights alone are rounded.

    EfficientViT-B0, mAP: .656 in float, .208 with these nodes in int8, .663 without.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: set[str] = set()
    sums: list[onnx.NodeProto] = []
    ahead = [node for node in model.graph.node if node.op_type in FLOAT_STARTS]
    while ahead:
        node = ahead.pop()
        if node.op_type == "Add" and not weights & set(node.input):
            sums.append(node)
            continue
        if node.name in found or node.op_type in ("Conv", "Gemm"):
            continue
        found.add(node.name)
        ahead += [makers[name] for name in node.input if name in makers]
        ahead += [reader for name in node.output for reader in readers.get(name, [])]
    return found | {
        node.name for node in sums if any(makers[name].name in found for name in node.input if name in makers)
    }
