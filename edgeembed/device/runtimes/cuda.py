"""The few calls of CUDA's runtime that an engine needs, through cuda-python: no torch on the device."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from edgeembed.arrays import UInt8Array
from edgeembed.errors import CheckFailed, UserError


def import_cudart() -> ModuleType:
    """cuda-python's module of the CUDA runtime, which has another name in its releases before 12.8.

    Raises ModuleNotFoundError where cuda-python is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ModuleNotFoundError:
        from cuda import cudart as runtime
    return runtime  # type: ignore[no-any-return]


class Device:
    """The current GPU: a stream of its own, memory on both sides of the bus, graphs of what was put into the stream."""

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
        name = properties.name
        self.name = (name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0")
        self.compute_capability = f"{properties.major}.{properties.minor}"
        self.stream = int(self._call("cudaStreamCreate"))
        self._release: list[Callable[[], Any]] = [lambda: self._cudart.cudaStreamDestroy(self.stream)]

    def allocate(self, num_bytes: int) -> int:
        """Memory on the GPU, kept as long as this object; its address."""
        address = int(self._call("cudaMalloc", num_bytes))
        self._release.append(lambda: self._cudart.cudaFree(address))
        return address

    def allocate_pinned(self, num_bytes: int) -> UInt8Array:
        """Memory of the host that the GPU reads and writes by itself, (num_bytes,); valid as long as this object."""
        address = int(self._call("cudaMallocHost", num_bytes))
        self._release.append(lambda: self._cudart.cudaFreeHost(address))
        return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))

    def upload(self, address: int, pinned: UInt8Array) -> None:
        """Puts a copy to the GPU into the stream."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, pinned.ctypes.data, pinned.nbytes, kind, self.stream)

    def download(self, pinned: UInt8Array, address: int) -> None:
        """Puts a copy from the GPU into the stream."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", pinned.ctypes.data, address, pinned.nbytes, kind, self.stream)

    def synchronise(self) -> None:
        """Waits for all that was put into the stream."""
        self._call("cudaStreamSynchronize", self.stream)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """What `enqueue` puts into the stream, as one launch: many small kernels cost more to start than to run.

        Raises CheckFailed where it cannot be captured; the stream is usable then as before.
        """
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            enqueue()
        finally:
            status, graph = self._cudart.cudaStreamEndCapture(self.stream)
        if int(status) != 0:
            self._cudart.cudaGetLastError()  # it would be told to the next call
            raise CheckFailed(f"CUDA: the work cannot be captured ({status.name})")
        try:
            executable = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._cudart.cudaGraphDestroy(graph)
        self._release.append(lambda: self._cudart.cudaGraphExecDestroy(executable))
        return lambda: self._call("cudaGraphLaunch", executable, self.stream)

    def close(self) -> None:
        """Gives back everything, the newest first."""
        while self._release:
            self._release.pop()()

    def _call(self, name: str, *arguments: Any) -> Any:
        """The value that a call returns beside its status. Raises CheckFailed with the status where it is an error."""
        status, *values = getattr(self._cudart, name)(*arguments)
        if int(status) != 0:
            raise CheckFailed(f"CUDA: {name}: {status.name}")
        return values[0] if values else None
