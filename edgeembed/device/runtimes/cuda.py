"""The calls of the CUDA runtime that a TensorRT engine needs, through cuda-python instead of torch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from edgeembed.arrays import UInt8Array
from edgeembed.errors import CheckFailed, UserError


def import_cudart() -> ModuleType:
    """Imports cuda-python's module of the CUDA runtime, which has another name before release 12.8.

    Raises ModuleNotFoundError where cuda-python is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ModuleNotFoundError:
        from cuda import cudart as runtime
    return runtime  # type: ignore[no-any-return]


class CudaDevice:
    """The current GPU with one stream, memory on the GPU and pinned memory on the host, and CUDA graphs."""

    def __init__(self) -> None:
        """Raises UserError where no GPU can be used."""
        self._cudart = import_cudart()
        try:
            index = self._call("cudaGetDevice")
            properties = self._call("cudaGetDeviceProperties", index)
        except CheckFailed as error:
            raise UserError(
                f"no NVIDIA GPU can be used here ({error}): engines run on the GPU they were built on"
            ) from None
        # Bytes or text, depending on the release of cuda-python.
        name = properties.name
        self.name = (name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0")
        self.compute_capability = f"{properties.major}.{properties.minor}"
        self.stream = int(self._call("cudaStreamCreate"))
        self._release: list[Callable[[], Any]] = [lambda: self._cudart.cudaStreamDestroy(self.stream)]

    def allocate(self, num_bytes: int) -> int:
        """Allocates memory on the GPU, which is freed with this object; returns its address."""
        address = int(self._call("cudaMalloc", num_bytes))
        self._release.append(lambda: self._cudart.cudaFree(address))
        return address

    def allocate_pinned(self, num_bytes: int) -> UInt8Array:
        """Allocates pinned host memory, (num_bytes,), which the GPU accesses directly; it is freed with this object."""
        address = int(self._call("cudaMallocHost", num_bytes))
        self._release.append(lambda: self._cudart.cudaFreeHost(address))
        return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))

    def upload(self, address: int, pinned: UInt8Array) -> None:
        """Enqueues a copy from the host to the GPU."""
        # Asynchronous copies run beside kernels only from pinned memory.
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, pinned.ctypes.data, pinned.nbytes, kind, self.stream)

    def download(self, pinned: UInt8Array, address: int) -> None:
        """Enqueues a copy from the GPU to the host."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", pinned.ctypes.data, address, pinned.nbytes, kind, self.stream)

    def synchronise(self) -> None:
        """Waits until everything enqueued in the stream is done."""
        self._call("cudaStreamSynchronize", self.stream)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Captures what `enqueue` enqueues as a CUDA graph; returns a function that launches it.

        One launch for many small kernels is faster, as they cost more to start than to run. Raises CheckFailed where
        the work cannot be captured; the stream can be used as before then.
        """
        # Thread-local, so that calls of other threads do not break the capture.
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            enqueue()
        finally:
            status, graph = self._cudart.cudaStreamEndCapture(self.stream)
        if int(status) != 0:
            self._cudart.cudaGetLastError()  # clears the error, which the next call would return otherwise
            raise CheckFailed(f"CUDA: the work cannot be captured ({status.name})")
        try:
            executable = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._cudart.cudaGraphDestroy(graph)
        self._release.append(lambda: self._cudart.cudaGraphExecDestroy(executable))
        return lambda: self._call("cudaGraphLaunch", executable, self.stream)

    def close(self) -> None:
        """Frees everything, in reverse order of allocation."""
        # The stream was created first and is destroyed last.
        while self._release:
            self._release.pop()()

    def _call(self, name: str, *arguments: Any) -> Any:
        """Returns the value of a function of the CUDA runtime. Raises CheckFailed where its status is an error."""
        status, *values = getattr(self._cudart, name)(*arguments)
        if int(status) != 0:
            raise CheckFailed(f"CUDA: {name}: {status.name}")
        return values[0] if values else None
