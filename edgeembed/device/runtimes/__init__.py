"""One door to whatever runs a network on this device; each runtime is imported only when it is asked for."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Any, Protocol

from edgeembed.arrays import FloatArray, UInt8Array
from edgeembed.errors import UserError, unknown_choice
from edgeembed.machine import Machine, describe_machine

X86_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
ARM_INT8_FLAGS = frozenset({"asimddp", "i8mm"})

RUNTIMES = {
    "onnxruntime": "edgeembed.device.runtimes.onnx_runtime",
    "openvino": "edgeembed.device.runtimes.openvino",
    "tensorrt": "edgeembed.device.runtimes.tensorrt",
}
"""By the name of the package that runs the network: the module whose `open_file` opens a file with it. ONNX Runtime is
the one of the base install, and the one that every exported file must run on."""
ONNX_RUNTIMES = ("onnxruntime", "openvino")
"""The runtimes whose files are ONNX files."""


class Session(Protocol):
    """A network that was opened once and runs many times."""

    runtime: str
    provider: str
    """The one that really runs, which may not be the one asked for."""
    threads: int
    input_shape: tuple[int | None, ...]
    """(N, H, W, 3) as the graph declares it; a name or None stands for what is free."""
    output_shape: tuple[int | None, ...]

    def run(self, image_NHWC: UInt8Array) -> FloatArray:
        """RGB pixels, 0..255, to unit vectors (N, D)."""
        ...


def open_session(
    path: Path, *, runtime: str = "onnxruntime", threads: int | None = None, provider: str | None = None
) -> Session:
    """Opens a network file, on all available cores unless `threads` says otherwise, on the CPU unless `provider` does
    (ONNX Runtime: cuda, coreml, ...; OpenVINO: a device such as gpu).

    Raises UserError for an unknown runtime, for a provider that the installed runtime does not offer and for a file
    that is not a network of ours; CheckFailed where the provider is offered but another one does the work.
    """
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}: expected at least 1")
    opened: Session = import_runtime(runtime).open_file(path, threads=threads or available_cores(), provider=provider)
    return opened


def import_runtime(runtime: str) -> Any:
    """The module that opens files with a runtime. Raises ModuleNotFoundError where its package is not installed."""
    if runtime not in RUNTIMES:
        raise unknown_choice("runtime", runtime, RUNTIMES)
    return importlib.import_module(RUNTIMES[runtime])


def is_installed(runtime: str) -> bool:
    """Whether a runtime can be asked for, found out without importing it."""
    return runtime in RUNTIMES and importlib.util.find_spec(runtime) is not None


def available_cores() -> int:
    """Cores that this process may run on."""
    return this_machine().cores


def has_int8_dot_product() -> bool:
    """Whether int8 products accumulate without saturating, and fast: VNNI or AMX on x86, DotProd or I8MM on ARM.

    False where the system does not tell (Windows): fp32 is the safe choice.
    """
    machine = this_machine()
    if machine.architecture == "arm64" and machine.system.startswith("macOS"):
        return True  # every Apple M chip has DotProd; macOS has no /proc/cpuinfo to say so
    return not (X86_INT8_FLAGS | ARM_INT8_FLAGS).isdisjoint(machine.cpu_flags)


@functools.cache
def this_machine() -> Machine:
    """The facts of this machine, read once in a process."""
    return describe_machine()
