"""Facts of the machine that runs this process, and the versions of the packages that edgeembed uses."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "edgeembed", "numpy", "onnx", "onnxruntime", "onnxscript", "onnxsim", "open_clip_torch", "openvino", "pillow",
    "pyarrow", "safetensors", "tensorrt", "timm", "torch", "torchvision",
)  # fmt: skip
CPU_FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8",
    "asimd", "asimddp", "i8mm", "bf16",
)  # fmt: skip
"""Instruction sets that decide how fast and how exactly a CPU computes a network, as /proc/cpuinfo names them."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """`cores` are those that this process may run on; `cpu_flags` are those of `CPU_FLAGS` that the CPU has, as far as
    the system lists them (only Linux does); `memory_bytes` is None where the system does not say.
    """

    cpu: str
    architecture: str
    cores: int
    cpu_flags: tuple[str, ...]
    memory_bytes: int | None
    system: str

    def to_json(self) -> dict[str, Any]:
        """The key `machine` of report.json, environment.json and `edgeembed doctor --json`."""
        return {**dataclasses.asdict(self), "cpu_flags": list(self.cpu_flags)}


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages among `PACKAGES`, without importing any."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def describe_machine() -> Machine:
    """Reads the facts from the system."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    # Only Linux has this file; elsewhere the flags stay empty.
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                model = value.strip()
            elif key.strip() in ("flags", "Features"):  # x86, ARM
                flags |= set(value.split())
    memory_bytes = None
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf, and names differ elsewhere
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        cpu=model,
        architecture=platform.machine(),
        # taskset and job schedulers may allow fewer cores than the machine has, which os.cpu_count() ignores.
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cpu_flags=tuple(flag for flag in CPU_FLAGS if flag in flags),
        memory_bytes=memory_bytes,
        system=platform.platform(),
    )


def environment() -> dict[str, Any]:
    """What environment.json of a run folder holds: machine, package versions and the command line."""
    return {"machine": describe_machine().to_json(), "versions": package_versions(), "command": sys.argv}
