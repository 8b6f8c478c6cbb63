"""Measures load time and peak memory of one model, in a process of its own.

Run as `python -m edgeembed.bench.footprint FILE --runtime R --threads N --height H --width W`; prints one JSON object.
Imports no torch, unless the model is a teacher's run folder (runtime "torch"). The caller has verified the file's
checksum.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeembed.arrays import UInt8Array
from edgeembed.device.runtimes import import_runtime, open_session

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from edgeembed.network.model import Network

RUNS = 3
TIMEOUT_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Milliseconds until the model is ready, and the process's peak memory after a few images."""

    load_ms: float
    peak_rss_bytes: int | None


def probe(path: Path, *, runtime: str, threads: int | None, height: int, width: int) -> Footprint:
    """Measures in a fresh interpreter, so that nothing else in this process is counted."""
    command = [sys.executable, "-m", "edgeembed.bench.footprint", str(path), "--runtime", runtime]
    command += ["--height", str(height), "--width", str(width)]
    command += [] if threads is None else ["--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    if done.returncode != 0:
        # The error itself is in the last line of the traceback.
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RuntimeError(f"{path}: loading it in a process of its own failed: {last}")
    return Footprint(**json.loads(done.stdout.strip().splitlines()[-1]))  # runtimes may print before it


def open_onnx_or_plan(path: Path, runtime: str, threads: int | None) -> Callable[[UInt8Array], object]:
    return open_session(path, runtime=runtime, threads=threads).run


def open_torch(path: Path, threads: int | None) -> Callable[[UInt8Array], object]:
    import torch

    from edgeembed.network.model_files import load_model

    if threads is not None:
        torch.set_num_threads(threads)
    model, _ = load_model(path)
    return torch_call(model)


def torch_call(model: Network) -> Callable[[UInt8Array], object]:
    """The network as a function of uint8 images (N, H, W, 3), as the other runtimes have it."""
    import torch

    def run(image_NHWC: UInt8Array) -> object:
        with torch.inference_mode():
            return model(torch.from_numpy(image_NHWC).permute(0, 3, 1, 2)).numpy()

    return run


def peak_rss_bytes() -> int | None:
    """The most memory that this process held at once; None on Windows, where Python cannot tell.

    Linux: VmHWM. ru_maxrss survives exec there, so in a child it can show the peak of the process that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, other systems KiB


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--height", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    given = parser.parse_args()
    # Imported before the clock starts: `load_ms` is the time of the model, not of Python packages.
    if given.runtime == "torch":
        importlib.import_module("edgeembed.network.model")
    else:
        import_runtime(given.runtime)

    started = time.perf_counter()
    if given.runtime == "torch":
        run = open_torch(given.path, given.threads)
    else:
        run = open_onnx_or_plan(given.path, given.runtime, given.threads)
    load_ms = 1e3 * (time.perf_counter() - started)
    image_NHWC = np.zeros((1, given.height, given.width, 3), np.uint8)
    for _ in range(RUNS):  # runtimes allocate their buffers in the first call
        run(image_NHWC)
    print(json.dumps({"load_ms": load_ms, "peak_rss_bytes": peak_rss_bytes()}))


if __name__ == "__main__":
    main()
