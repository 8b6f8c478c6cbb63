"""Runs engines in TensorRT 8.5 or newer on NVIDIA GPUs, without torch."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorrt

from edgeembed.device.bundle_schema import BundleFile
from edgeembed.device.runtimes.contract import Port, check_contract
from edgeembed.device.runtimes.cuda import CudaDevice
from edgeembed.errors import CheckFailed, UserError

log = logging.getLogger(__name__)

DTYPES = {"UINT8": "uint8", "FLOAT": "float32"}
PROFILE = 0  # engines that edgeembed builds have one optimisation profile
CAPTURE_AFTER = 3  # runs of one batch size until its work is captured as a CUDA graph
REBUILD_HINT = "build it here: `edgeembed export BUNDLE --tensorrt`"


class TensorRtLog(tensorrt.ILogger):  # type: ignore[misc]
    """Passes TensorRT's messages to Python's log and keeps the last error, for the message of an exception."""

    def __init__(self) -> None:
        super().__init__()
        self.last_error = ""

    def log(self, severity: Any, message: str) -> None:
        if severity in (tensorrt.ILogger.ERROR, tensorrt.ILogger.INTERNAL_ERROR):
            self.last_error = " ".join(message.split())
        log.debug("TensorRT, %s: %s", severity, message)


class TensorRtSession:
    """An engine with input `image` uint8 (N, H, W, 3) and output `embedding` float32 (N, D).

    Batches above the engine's largest are split. Memory is allocated once, for the largest batch. A batch size that
    recurs is launched as one CUDA graph, copies included.
    """

    runtime = "tensorrt"

    def __init__(self, path: Path, *, threads: int, provider: str | None = None) -> None:
        """Opens an engine whose checksum the caller has verified, because deserialising it runs native code in it.

        Raises UserError where there is no GPU, for another provider than cuda, and for an engine that this TensorRT and
        GPU cannot run or that has other inputs and outputs.
        """
        if provider not in (None, "cuda"):
            raise UserError(f"provider {provider!r}: TensorRT offers cuda")
        self._path, self.threads = path, threads
        self._device = CudaDevice()
        self._log = TensorRtLog()
        self._runtime = tensorrt.Runtime(self._log)
        if hasattr(self._runtime, "engine_host_code_allowed"):
            self._runtime.engine_host_code_allowed = True  # version-compatible engines contain such code
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise UserError(
                f"{path}: TensorRT {tensorrt.__version__} cannot open it ({self._log.last_error}): {REBUILD_HINT}"
            )
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        ports: dict[Any, list[Port]] = {tensorrt.TensorIOMode.INPUT: [], tensorrt.TensorIOMode.OUTPUT: []}
        for name in names:
            ports[self._engine.get_tensor_mode(name)].append(self._port(name))
        self.input_shape, self.output_shape = check_contract(
            path, ports[tensorrt.TensorIOMode.INPUT], ports[tensorrt.TensorIOMode.OUTPUT]
        )
        self.largest_batch = int(self._engine.get_tensor_profile_shape("image", PROFILE)[2][0])
        self.provider = f"{self._device.name} (TensorRT {tensorrt.__version__})"
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise CheckFailed(f"{path}: TensorRT cannot make an execution context ({self._log.last_error})")
        # One buffer on the host and one on the GPU for the input and the output, each for the largest batch.
        self._pinned, self._address = {}, {}
        for name, shape, size in (("image", self.input_shape, 1), ("embedding", self.output_shape, 4)):
            num_bytes = self.largest_batch * math.prod(dimension or 1 for dimension in shape[1:]) * size
            self._pinned[name] = self._device.allocate_pinned(num_bytes)
            self._address[name] = self._device.allocate(num_bytes)
            self._context.set_tensor_address(name, self._address[name])
        self._batch = 0  # the batch size that the context is set to
        self._runs: dict[int, int] = {}
        self._graphs: dict[int, Any] = {}
        self._lock = threading.Lock()  # the buffers hold one call at a time

    def run(self, image_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Unit vectors (N, D) of RGB pixels (N, H, W, 3), 0..255. Raises CheckFailed where the engine fails."""
        if image_NHWC.dtype != np.uint8 or image_NHWC.shape[1:] != self.input_shape[1:]:
            expected = f"uint8 (N, {', '.join(map(str, self.input_shape[1:]))})"
            raise CheckFailed(f"{self._path}: pixels are {image_NHWC.dtype} {image_NHWC.shape}, expected {expected}")
        starts = range(0, len(image_NHWC), self.largest_batch)
        with self._lock:
            parts = [self._run(image_NHWC[start : start + self.largest_batch]) for start in starts]
        return np.concatenate(parts) if parts else np.empty((0, self.output_shape[1] or 0), np.float32)

    def _run(self, image_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Runs at most `largest_batch` images."""
        batch = len(image_NHWC)
        pixels = self._pinned["image"][: image_NHWC.nbytes]
        pixels[:] = np.ascontiguousarray(image_NHWC).reshape(-1)
        # The context keeps its shape from call to call.
        if self._batch != batch:
            if not self._context.set_input_shape("image", image_NHWC.shape):
                raise CheckFailed(f"{self._path}: refuses {image_NHWC.shape} ({self._log.last_error})")
            self._batch = batch
        self._launch(batch)
        self._device.synchronise()
        # A copy, because the next call overwrites the pinned memory.
        embedding_ND: npt.NDArray[np.float32] = self._output(batch).view(np.float32).reshape(batch, -1).copy()
        return embedding_ND

    def _launch(self, batch: int) -> None:
        """Enqueues one batch, as a CUDA graph once this batch size was run several times."""
        if batch in self._graphs:
            self._graphs[batch]()
            return
        self._runs[batch] = self._runs.get(batch, 0) + 1
        if self._runs[batch] == CAPTURE_AFTER:
            with contextlib.suppress(CheckFailed):  # an engine that cannot be captured runs without a graph
                self._graphs[batch] = self._device.capture(lambda: self._enqueue(batch))
                self._graphs[batch]()
                return
        self._enqueue(batch)

    def _enqueue(self, batch: int) -> None:
        """Enqueues the copies and the kernels of one batch."""
        image_bytes = math.prod(dimension or 1 for dimension in self.input_shape[1:])
        self._device.upload(self._address["image"], self._pinned["image"][: batch * image_bytes])
        if not self._context.execute_async_v3(self._device.stream):
            raise CheckFailed(f"{self._path}: TensorRT does not run it ({self._log.last_error})")
        self._device.download(self._output(batch), self._address["embedding"])

    def _output(self, batch: int) -> npt.NDArray[np.uint8]:
        """The bytes of one batch of embeddings in pinned memory."""
        return self._pinned["embedding"][: 4 * batch * (self.output_shape[1] or 1)]

    def _port(self, name: str) -> Port:
        kind = self._engine.get_tensor_dtype(name).name
        dimensions = [int(size) for size in self._engine.get_tensor_shape(name)]
        return Port(
            name=name, dtype=DTYPES.get(kind, kind), shape=tuple(size if size >= 0 else None for size in dimensions)
        )

    def __del__(self) -> None:
        # The context and the engine use the device's memory: they go first.
        for name in ("_graphs", "_context", "_engine", "_runtime"):
            self.__dict__.pop(name, None)
        if (device := self.__dict__.pop("_device", None)) is not None:
            device.close()


open_file = TensorRtSession


def require_built_here(file: BundleFile) -> None:
    """Raises UserError for an engine that was built by another TensorRT version or for another GPU than this one."""
    engine = file.engine
    if engine is None:
        raise UserError(f"{file.path}: does not say which GPU and TensorRT it was built for: {REBUILD_HINT}")
    here = tensorrt.__version__
    same_version = (
        here.split(".")[0] == engine.tensorrt.split(".")[0] if engine.version_compatible else here == engine.tensorrt
    )
    if not same_version:
        raise UserError(f"{file.path}: was built by TensorRT {engine.tensorrt}, here is {here}: {REBUILD_HINT}")
    device = CudaDevice()
    try:
        name, capability = device.name, device.compute_capability
    finally:
        device.close()
    newer = tuple(map(int, capability.split("."))) >= (8, 0)  # hardware compatibility covers Ampere and newer
    if name != engine.gpu and not (engine.hardware_compatible and newer):
        raise UserError(f"{file.path}: was built for {engine.gpu}, here is {name}: {REBUILD_HINT}")
