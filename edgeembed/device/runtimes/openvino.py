"""OpenVINO on the same ONNX files: faster than ONNX Runtime on some networks and CPUs, and on Intel's GPUs and NPUs."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgeembed.device.runtimes.contract import Port, require_contract
from edgeembed.errors import CheckFailed, UserError, unknown_choice

# The import of openvino tells its makers that it happened and writes an identifier into the home folder, where it finds
# this package; without it, it does neither. It is kept away during the import only.
_telemetry = sys.modules.get("openvino_telemetry")
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
try:
    import openvino
    from openvino.frontend import FrontEndManager
finally:
    del sys.modules["openvino_telemetry"]
    if _telemetry is not None:
        sys.modules["openvino_telemetry"] = _telemetry


class SignalStack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_: ClassVar = [("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size_bytes", ctypes.c_size_t)]


@contextlib.contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Puts back the thread's alternate signal stack, which compiling a model replaces by one of the model's own.

    That one is freed with its model, and where models do not go in the order in which they came it stays in force: the
    next signal that Python handles (a child's end, Ctrl-C) would then end the process with a segmentation fault.
    """
    sigaltstack = getattr(ctypes.CDLL(None), "sigaltstack", None) if sys.platform == "linux" else None
    before = SignalStack()
    if sigaltstack is not None:
        sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        if sigaltstack is not None:
            sigaltstack(ctypes.byref(before), None)


DTYPES = {"u8": "uint8", "f32": "float32"}
LARGEST_BATCH = 16


class OpenVinoSession:
    """One ONNX file, with input `image` uint8 (N, H, W, 3) and output `embedding` float32 (N, D).

    Compiled for batches of 1, 2, 4, 8 and 16 as they come, each with a fixed shape: with a free N, OpenVINO 2026.4
    computes int8 convolutions wrongly (cosine .77 to the same file in ONNX Runtime, .999 with a fixed one). Other
    batches are split and filled up.
    """

    runtime = "openvino"

    def __init__(self, path: Path, *, threads: int, provider: str | None = None) -> None:
        """`provider` is a device that OpenVINO offers (cpu, gpu, npu); None: the CPU.

        Raises UserError for a device that is not offered, and for a file that cannot be opened or whose graph takes or
        gives something else.
        """
        self._path = path
        self._core = openvino.Core()
        self._device = "CPU" if provider is None else offered_device(self._core, provider)
        self._settings = {
            # Without this, fp32 files are computed in bf16 on CPUs that have it. int8 stays int8.
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
        }
        if self._device == "CPU":
            self._settings["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            # The front end of ONNX alone: read_model would try every format there is on a broken file.
            frontend = FrontEndManager().load_by_framework("onnx")
            self._model = frontend.convert(frontend.load(str(path)))
        except Exception as error:
            raise self._refusal(error) from None
        self.input_shape, self.output_shape = require_contract(
            path, ports(self._model.inputs), ports(self._model.outputs)
        )
        self._compiled: dict[int, Any] = {}
        self._lock = threading.Lock()  # a compiled model has room for one call
        try:
            compiled = self._compiled_for(1)
        except Exception as error:
            raise self._refusal(error) from None
        self.provider = ", ".join(compiled.get_property("EXECUTION_DEVICES"))
        self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS")) if self._device == "CPU" else threads

    def run(self, image_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """RGB pixels, 0..255, to unit vectors (N, D). Raises CheckFailed where the network does not compute."""
        starts = range(0, max(1, len(image_NHWC)), LARGEST_BATCH)
        try:
            with self._lock:
                return np.concatenate([self._run(image_NHWC[i : i + LARGEST_BATCH]) for i in starts])
        except Exception as error:
            message = f"{self._path}: fails on pixels of shape {image_NHWC.shape} ({one_line(error)})"
            raise CheckFailed(message) from error

    def _run(self, image_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """At most LARGEST_BATCH images, in the next larger batch that models are compiled for."""
        num_images = len(image_NHWC)
        batch = 1 << max(0, num_images - 1).bit_length()
        if batch != num_images:
            filling = np.zeros((batch - num_images, *image_NHWC.shape[1:]), np.uint8)
            image_NHWC = np.concatenate([image_NHWC, filling])
        embedding_ND: npt.NDArray[np.float32] = self._compiled_for(batch)(image_NHWC)["embedding"]
        return embedding_ND[:num_images]

    def _compiled_for(self, batch: int) -> Any:
        if batch not in self._compiled:
            model = self._model.clone()
            model.reshape([batch, *self.input_shape[1:]])
            with signal_stack_kept():
                self._compiled[batch] = self._core.compile_model(model, self._device, self._settings)
        return self._compiled[batch]

    def _refusal(self, error: Exception) -> UserError:
        version = openvino.__version__.split("-")[0]
        return UserError(f"{self._path}: OpenVINO {version} cannot open it ({one_line(error)})")


open_file = OpenVinoSession


def offered_device(core: Any, provider: str) -> str:
    """OpenVINO's name of a device. Raises UserError where it is not offered here."""
    offered = [str(device) for device in core.available_devices]
    if provider.upper() not in offered:
        raise unknown_choice("provider", provider, [device.lower() for device in offered], "(devices of OpenVINO here)")
    return provider.upper()


def ports(nodes: Sequence[Any]) -> list[Port]:
    """Inputs or outputs as OpenVINO lists them; one may have several names."""
    return [
        Port(
            name=next((name for name in ("image", "embedding") if name in node.get_names()), node.get_any_name()),
            dtype=DTYPES.get(kind := node.get_element_type().get_type_name(), kind),
            shape=tuple(None if side.is_dynamic else side.get_length() for side in node.get_partial_shape()),
        )
        for node in nodes
    ]


def one_line(error: Exception) -> str:
    """What went wrong, without the places in OpenVINO's source that lead up to it."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("Exception from src/"))
