"""One door to whatever runs a network on this device; each runtime is imported only when it is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeembed.errors import UserError, unknown_choice
from edgeembed.run import machine

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

X86_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
ARM_INT8_FLAGS = frozenset({"asimddp", "i8mm"})


class Session(Protocol):
    """A network that was opened once and runs many times."""

    runtime: str
    provider: str
    """The one that really runs, which may not be the one asked for."""
    threads: int
    input_shape: tuple[int | str | None, ...]
    """(N, H, W, 3) as the graph declares it; a name or None stands for what is free."""
    output_shape: tuple[int | str | None, ...]

    def run(self, image_NHWC: UInt8Array) -> FloatArray:
        """RGB pixels, 0..255, to unit vectors (N, D)."""
        ...


def open_session(path: Path, *, runtime: str = "onnxruntime", threads: int | None = None) -> Session:
    """Opens a network file, on all available cores unless `threads` says otherwise.

    Raises UserError for an unknown runtime and for a file that is not a network of ours.
    """
    if runtime not in RUNTIMES:
        raise unknown_choice("runtime", runtime, RUNTIMES)
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}: expected at least 1")
    return RUNTIMES[runtime](path, threads or available_cores())


def available_cores() -> int:
    """Cores that this process may run on."""
    return int(_machine()["cores"])


def has_int8_dot_product() -> bool:
    """Whether int8 products accumulate without saturating, and fast: VNNI or AMX on x86, DotProd or I8MM on ARM.

    False where the system does not tell (Windows): fp32 is the safe choice.
    """
    facts = _machine()
    if facts["architecture"] == "arm64" and str(facts["system"]).startswith("macOS"):
        return True  # every Apple M chip has DotProd; macOS has no /proc/cpuinfo to say so
    return not (X86_INT8_FLAGS | ARM_INT8_FLAGS).isdisjoint(facts["cpu_flags"])


@functools.cache
def _machine() -> dict[str, Any]:
    return machine()


def _onnxruntime(path: Path, threads: int) -> Session:
    from edgeembed.runtimes.ort import OnnxRuntimeSession

    return OnnxRuntimeSession(path, threads=threads)


RUNTIMES: dict[str, Callable[[Path, int], Session]] = {"onnxruntime": _onnxruntime}
