"""Static int8 quantisation in QDQ form, with calibration on real images.

All calibration methods are tried and compared. Then the operators that hurt most return to float32 until the gate
passes. `operators` chooses what is quantised at all.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator, save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgeembed.arrays import FloatArray, UInt8Array
from edgeembed.device.bundle_schema import Quantisation
from edgeembed.export.graph import Graph
from edgeembed.export.int8.float_weights import keep_float_weights
from edgeembed.export.int8.operators import choose_operators
from edgeembed.export.int8.residual_sums import avoid_rounding_ties
from edgeembed.export.int8.stem import quantise_stem
from edgeembed.export.recipe import Int8Section
from edgeembed.progress import stage

log = logging.getLogger(__name__)

BATCH = 16
# Few, because they are embedded once for every operator.
RANKING_IMAGES = 32
HISTOGRAM_IMAGES = 64  # for a histogram every activation is counted, which takes longer than computing it
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
NUM_BINS = {"minmax": 0, "percentile": 2048, "entropy": 256}  # the time of entropy grows with their square


@dataclass(frozen=True, kw_only=True)
class QuantisedModel:
    """A model in QDQ form, and how it was quantised, as bundle.json records it."""

    model: onnx.ModelProto
    quantisation: Quantisation


def int8_candidates(
    model: onnx.ModelProto,
    calibration_NHWC: UInt8Array,
    selection_NHWC: UInt8Array,
    settings: Int8Section,
    *,
    reduce_range: bool = True,
) -> Iterator[QuantisedModel]:
    """Yields models for the gate to check one after the other until one passes.

    The first is quantised by the calibration method whose embeddings are closest to the float model's on the selection
    images. Each further one leaves 1, 2, 4, ... of the operators that hurt most in float32. `reduce_range`: weights of
    7 bits, whose products saturate on no CPU.
    """
    # Stays until the caller takes no more candidates: each is quantised when it is taken.
    with tempfile.TemporaryDirectory() as folder:
        quantiser = Quantiser(model, calibration_NHWC, Path(folder), settings, reduce_range=reduce_range)
        expected_ND = embed(model, selection_NHWC)
        methods = list(METHODS) if settings.calibration == "auto" else [settings.calibration]
        distances = {}
        for method in methods:
            with stage(f"int8: calibration by {method}"):
                distances[method] = mean_cosine_distance(quantiser.quantise(method), selection_NHWC, expected_ND)
        best = min(distances, key=lambda method: distances[method])
        listed = ", ".join(f"{name} {value:.5f}" for name, value in distances.items())
        log.info("int8: calibration by %s is used (mean 1 - cosine: %s)", best, listed)
        yield quantiser.candidate(best)

        # Only if the gate refuses the first: measuring each operator alone takes minutes.
        worst_first = quantiser.rank_operators(best, selection_NHWC[:RANKING_IMAGES], expected_ND[:RANKING_IMAGES])
        allowed = quantiser.within_weight_share(worst_first, settings.max_float_weight_share)
        count, max_count = 1, min(int(settings.max_float_share * len(worst_first)), len(allowed))
        while count <= max_count:
            log.info("int8: %d of %d operators left in float32", count, len(worst_first))
            yield quantiser.candidate(best, allowed[:count])
            # Doubled, because each candidate is quantised and run on all images of the gate.
            count *= 2


class Quantiser:
    """Quantises one network any number of times; it is prepared once, and calibrated once for each method.

    `folder` holds the intermediate files, which `quantise` overwrites.
    """

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
        self.prepared = folder / "prepared.onnx"
        onnx.save(model, folder / "float.onnx")
        with quiet():
            quant_pre_process(str(folder / "float.onnx"), str(self.prepared), skip_symbolic_shape=True)
        self.metadata = {item.key: item.value for item in model.metadata_props}
        self.operators = choose_operators(onnx.load(self.prepared))
        self.reduce_range = reduce_range

    def candidate(self, method: str, keep_float: Sequence[str] = ()) -> QuantisedModel:
        """The model quantised with a calibration method, with the record of it for bundle.json."""
        return QuantisedModel(
            model=self.quantise(method, keep_float=keep_float),
            quantisation=Quantisation(
                calibration=method,
                reduce_range=self.reduce_range,
                cpus="any" if self.reduce_range else "int8 dot products",
                float_operators=tuple(keep_float),
            ),
        )

    def quantise(
        self, method: str, *, only: Collection[str] | None = None, keep_float: Collection[str] = ()
    ) -> onnx.ModelProto:
        """Returns the model with int8 weights per channel and uint8 activations.

        `only` some operators are quantised, or all but `keep_float`.
        """
        nodes = [name for name in self.operators.nodes if name not in keep_float and (only is None or name in only)]
        with quiet():
            quantised = onnx.load(
                self._quantise_static(method, [name for name in nodes if name != self.operators.stem])
            )
        # In this order: the stem is quantised apart, after the passes that read ONNX Runtime's scales.
        avoid_rounding_ties(quantised)
        keep_float_weights(quantised)
        if self.operators.stem in nodes:
            quantise_stem(quantised, self.calibration_NHWC, reduce_range=self.reduce_range)
        del quantised.metadata_props[:]  # those of the quantiser
        onnx.helper.set_model_props(quantised, self.metadata)
        return quantised

    def _quantise_static(self, method: str, nodes: list[str]) -> Path:
        """The file in which ONNX Runtime quantised these operators."""
        if not nodes:  # ONNX Runtime takes an empty list for all operators
            return self.prepared
        path = self.folder / "int8.onnx"
        quantize_static(
            str(self.prepared),
            str(path),
            None,
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=self.reduce_range,
            calibrate_method=METHODS[method],
            calibration_cache_path=self.calibration_file(method),
            op_types_to_quantize=list(self.operators.op_types),
            nodes_to_quantize=nodes,
            extra_options={"OpTypesToExcludeOutputQuantization": list(self.operators.float_outputs)},
        )
        return path

    def calibration_file(self, method: str) -> Path:
        """The file with the value ranges of all activations by a method; the first call computes them."""
        path = self.folder / f"{method}.json"
        if not path.exists():
            with quiet():
                save_tensors_data(self._calibrate(method), path)
        return path

    def _calibrate(self, method: str) -> TensorsData:
        calibrator = create_calibrator(
            self.prepared,
            list(self.operators.op_types),
            augmented_model_path=str(self.folder / "augmented.onnx"),
            calibrate_method=METHODS[method],
            extra_options={
                # uint8 has a zero point, so that a range from 0 on, as behind a Relu, uses all 256 levels.
                "symmetric": False,
                "num_bins": NUM_BINS[method],
                "percentile": self.settings.percentile,
            },
        )
        pixels_NHWC = self.calibration_NHWC
        if method != "minmax":
            pixels_NHWC = pixels_NHWC[:: max(1, len(pixels_NHWC) // HISTOGRAM_IMAGES)]
        # Batch by batch, because a calibrator keeps all activations of what one reader gives it.
        for start in range(0, len(pixels_NHWC), BATCH):
            calibrator.collect_data(OneBatch(pixels_NHWC[start : start + BATCH]))
        ranges = calibrator.compute_data()
        assert isinstance(ranges, TensorsData)
        return ranges

    def rank_operators(self, method: str, pixels_NHWC: UInt8Array, expected_ND: FloatArray) -> list[str]:
        """Names of the operators, those first that move the embeddings most when they alone are quantised."""
        with stage(f"int8: measuring each of {len(self.operators.nodes)} operators alone"):
            distances = {
                name: mean_cosine_distance(self.quantise(method, only=[name]), pixels_NHWC, expected_ND)
                for name in self.operators.nodes
            }
        return sorted(distances, key=lambda name: -distances[name])

    def within_weight_share(self, names: Sequence[str], share: float) -> list[str]:
        """Returns operators in the given order, without those whose weights would exceed a share of all weights."""
        graph = Graph(onnx.load(self.prepared))
        num_weights = {
            node.name: sum(math.prod(graph.constants[name].dims) for name in node.input if name in graph.constants)
            for node in graph.nodes
        }
        room = share * sum(num_weights.values())
        fitting = []
        for name in names:
            if num_weights[name] <= room:
                room -= num_weights[name]
                fitting.append(name)
        return fitting


class OneBatch(CalibrationDataReader):  # type: ignore[misc]
    """Feeds one batch of pixels to ONNX Runtime's calibration."""

    def __init__(self, pixels_NHWC: UInt8Array) -> None:
        self.remaining: list[UInt8Array] = [pixels_NHWC]

    def get_next(self) -> dict[str, UInt8Array] | None:
        return {"image": self.remaining.pop()} if self.remaining else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the quantiser, which writes advice to the root logger, and progress to stdout, where results belong."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)


def embed(model: onnx.ModelProto, pixels_NHWC: UInt8Array) -> FloatArray:
    """Embeddings (N, D) of a model that is not on disk."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    batches = [pixels_NHWC[start : start + BATCH] for start in range(0, len(pixels_NHWC), BATCH)]
    return np.concatenate([session.run(["embedding"], {"image": batch})[0] for batch in batches])


def mean_cosine_distance(model: onnx.ModelProto, pixels_NHWC: UInt8Array, expected_ND: FloatArray) -> float:
    """Mean of 1 - cosine between a model's embeddings and those expected; infinite where one is not finite."""
    cosine_N = np.einsum("nd,nd->n", embed(model, pixels_NHWC), expected_ND)
    # Infinite, so that `min` never chooses it.
    return float(1.0 - cosine_N.mean()) if np.isfinite(cosine_N).all() else float("inf")
