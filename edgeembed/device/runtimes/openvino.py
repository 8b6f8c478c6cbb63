"""Runs ONNX files in OpenVINO, which is faster on some networks and CPUs and supports Intel's GPUs and NPUs."""

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

from edgeembed.device.runtimes.contract import Port, check_contract
from edgeembed.errors import CheckFailed, UserError, unknown_choice

# If openvino finds the package openvino_telemetry while it is imported, it sends usage data and writes an identifier
# into the home folder. So that package is hidden during the import.
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
    """The C structure stack_t of Linux."""

    _fields_: ClassVar = [("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size_bytes", ctypes.c_size_t)]


@contextlib.contextmanager
def keep_signal_stack() -> Iterator[None]:
    """Restores the thread's alternate signal stack after the block, in which OpenVINO compiles a model.

    Compiling installs a signal stack that is freed with the model. Where models are not deleted in reverse order, a
    freed stack stays installed, and the next signal that Python handles (the end of a child process, Ctrl-C) would end
    the process with a segmentation fault.
    """
    # On Linux only, whose structure is declared above.
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

    It is compiled for batch sizes 1, 2, 4, 8 and 16 when they are first used; other batches are split and padded. Each
    has a fixed shape, because with a dynamic N OpenVINO 2026.4 computes int8 convolutions wrongly (cosine .77 to the
    same file in ONNX Runtime; .999 with a fixed N).
    """

    runtime = "openvino"

    def __init__(self, path: Path, *, threads: int, provider: str | None = None) -> None:
        """`provider` is a device that OpenVINO offers (cpu, gpu, npu); None means the CPU.

        Raises UserError for a device that is not offered, and for a file that cannot be opened or that has other inputs
        and outputs.
        """
        self._path = path
        self._core = openvino.Core()
        self._device = "CPU" if provider is None else find_device(self._core, provider)
        self._settings = {
            # Without this, fp32 files are computed in bf16 on CPUs that have it. int8 stays int8.
            "INFERENCE_PRECISION_HINT": "f32",
            # One image at a time, as on a device, on all threads together.
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
        }
        if self._device == "CPU":
            self._settings["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            # The ONNX front end only: read_model would try every format on a damaged file.
            frontend = FrontEndManager().load_by_framework("onnx")
            self._model = frontend.convert(frontend.load(str(path)))
        except Exception as error:
            raise self._open_error(error) from None
        self.input_shape, self.output_shape = check_contract(
            path, ports(self._model.inputs), ports(self._model.outputs)
        )
        self._compiled: dict[int, Any] = {}
        self._lock = threading.Lock()  # a compiled model can run one call at a time
        try:
            compiled = self._compiled_for(1)
        except Exception as error:
            raise self._open_error(error) from None
        self.provider = ", ".join(compiled.get_property("EXECUTION_DEVICES"))
        self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS")) if self._device == "CPU" else threads

    def run(self, image_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Unit vectors (N, D) of RGB pixels (N, H, W, 3), 0..255. Raises CheckFailed where the network fails."""
        starts = range(0, max(1, len(image_NHWC)), LARGEST_BATCH)
        try:
            with self._lock:
                return np.concatenate([self._run(image_NHWC[i : i + LARGEST_BATCH]) for i in starts])
        except Exception as error:
            message = f"{self._path}: fails on pixels of shape {image_NHWC.shape} ({one_line_message(error)})"
            raise CheckFailed(message) from error

    def _run(self, image_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Runs at most LARGEST_BATCH images, padded to the next batch size that models are compiled for."""
        num_images = len(image_NHWC)
        # The next power of two, so that few batch sizes are compiled.
        batch = 1 << max(0, num_images - 1).bit_length()
        if batch != num_images:
            padding = np.zeros((batch - num_images, *image_NHWC.shape[1:]), np.uint8)
            image_NHWC = np.concatenate([image_NHWC, padding])
        embedding_ND: npt.NDArray[np.float32] = self._compiled_for(batch)(image_NHWC)["embedding"]
        return embedding_ND[:num_images]

    def _compiled_for(self, batch: int) -> Any:
        """The model compiled for a batch size, when it is first used."""
        if batch not in self._compiled:
            # Reshaping changes a model in place.
            model = self._model.clone()
            model.reshape([batch, *self.input_shape[1:]])
            with keep_signal_stack():
                self._compiled[batch] = self._core.compile_model(model, self._device, self._settings)
        return self._compiled[batch]

    def _open_error(self, error: Exception) -> UserError:
        """The error for a file that OpenVINO cannot open."""
        version = openvino.__version__.split("-")[0]
        return UserError(f"{self._path}: OpenVINO {version} cannot open it ({one_line_message(error)})")


open_file = OpenVinoSession


def find_device(core: Any, provider: str) -> str:
    """OpenVINO's name for a device. Raises UserError where OpenVINO does not offer it here."""
    offered = [str(device) for device in core.available_devices]
    if provider.upper() not in offered:
        raise unknown_choice("provider", provider, [device.lower() for device in offered], "(devices of OpenVINO here)")
    return provider.upper()


def ports(nodes: Sequence[Any]) -> list[Port]:
    """Inputs or outputs as OpenVINO lists them; each may have several names."""
    return [
        Port(
            name=next((name for name in ("image", "embedding") if name in node.get_names()), node.get_any_name()),
            dtype=DTYPES.get(kind := node.get_element_type().get_type_name(), kind),
            shape=tuple(None if size.is_dynamic else size.get_length() for size in node.get_partial_shape()),
        )
        for node in nodes
    ]


def one_line_message(error: Exception) -> str:
    """The message of an error in one line, without its lines about places in OpenVINO's source code."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("Exception from src/"))
