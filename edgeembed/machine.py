"""What machine this is, and which versions of our dependencies it has."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "edgeembed", "numpy", "onnx", "onnxruntime", "onnxscript", "onnxsim", "open_clip_torch", "openvino", "pillow",
    "pyarrow", "safetensors", "tensorrt", "timm", "torch", "torchvision",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Versions of what is installed of our dependencies, without importing any."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def machine() -> dict[str, Any]:
    """CPU model, cores, instruction sets that matter for inference, memory and system."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags |= set(value.split())
    wanted = (
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx_vnni",
        "avx512_bf16",
        "amx_int8",
        "asimd",
        "asimddp",
        "i8mm",
        "bf16",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = None
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf, and names differ elsewhere
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "architecture": platform.machine(),
        "cores": cores,
        "cpu_flags": [flag for flag in wanted if flag in flags],
        "memory_bytes": memory,
        "system": platform.platform(),
    }


def environment() -> dict[str, Any]:
    return {"machine": machine(), "versions": package_versions(), "command": sys.argv}
