"""Opens a network file in ONNX Runtime, OpenVINO or TensorRT; each runtime is imported only when it is used."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Any, Protocol

from edgeembed.arrays import FloatArray, UInt8Array
from edgeembed.errors import UserError, unknown_choice
from edgeembed.machine import Machine, describe_machine

# As /proc/cpuinfo names them; see machine.CPU_FLAGS.
X86_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
ARM_INT8_FLAGS = frozenset({"asimddp", "i8mm"})

RUNTIMES = {
    "onnxruntime": "edgeembed.device.runtimes.onnx_runtime",
    "openvino": "edgeembed.device.runtimes.openvino",
    "tensorrt": "edgeembed.device.runtimes.tensorrt",
}
"""Runtime, by the name of its Python package, and the module whose `open_file` opens a file in it. ONNX Runtime is in
the base install, and every exported ONNX file must run in it."""
ONNX_RUNTIMES = ("onnxruntime", "openvino")
"""The runtimes that run ONNX files."""


class Session(Protocol):
    """An open network file, which can be run many times."""

    runtime: str
    provider: str
    """The device or execution provider that the network runs on."""
    threads: int
    input_shape: tuple[int | None, ...]
    """(N, H, W, 3) as the graph declares it; None for a dynamic dimension."""
    output_shape: tuple[int | None, ...]

    def run(self, image_NHWC: UInt8Array) -> FloatArray:
        """Unit vectors (N, D) of RGB pixels (N, H, W, 3), 0..255."""
        ...


def open_session(
    path: Path, *, runtime: str = "onnxruntime", threads: int | None = None, provider: str | None = None
) -> Session:
    """Opens a network file; by default on the CPU with all available cores.

    `provider` is an execution provider of ONNX Runtime (cuda, coreml, ...) or a device of OpenVINO (gpu, npu).

    Raises UserError for an unknown runtime, for a provider that the installed runtime does not offer, and for a file
    whose inputs and outputs are not those of an exported network; CheckFailed where ONNX Runtime offers the provider
    but runs no operator on it.
    """
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}: expected at least 1")
    session: Session = import_runtime(runtime).open_file(path, threads=threads or available_cores(), provider=provider)
    return session


def import_runtime(runtime: str) -> Any:
    """The module that opens files with a runtime. Raises ModuleNotFoundError where its package is not installed."""
    if runtime not in RUNTIMES:
        raise unknown_choice("runtime", runtime, RUNTIMES)
    return importlib.import_module(RUNTIMES[runtime])


def is_installed(runtime: str) -> bool:
    """Whether a runtime is known and installed; it is not imported."""
    # Importing a runtime takes much longer than looking for its package.
    return runtime in RUNTIMES and importlib.util.find_spec(runtime) is not None


def available_cores() -> int:
    """Number of cores that this process may run on."""
    return this_machine().cores


def has_int8_dot_product() -> bool:
    """Whether the CPU has int8 dot products, fast and without saturation: VNNI or AMX on x86, DotProd or I8MM on ARM.

    False where the system does not tell (Windows), because fp32 is the safe choice.
    """
    machine = this_machine()
    if machine.architecture == "arm64" and machine.system.startswith("macOS"):
        return True  # every Apple M chip has DotProd, and macOS has no /proc/cpuinfo
    # Neither set is empty on a CPU that has the instructions, whichever its architecture is.
    return not (X86_INT8_FLAGS | ARM_INT8_FLAGS).isdisjoint(machine.cpu_flags)


@functools.cache
def this_machine() -> Machine:
    """The facts of this machine, read once in a process."""
    return describe_machine()
