"""One network on a GPU, from uint8 pixels in memory to embeddings in memory: engines, ONNX Runtime, torch.compile.

Why: whether an engine is worth its build should be seen beside what needs none, on one GPU, with every copy counted.
Usage: python benchmarks/gpu_latency.py BUNDLE RUNTIME --images FOLDER [--run RUN] --out FOLDER
RUNTIME: tensorrt, onnxruntime (its CUDA provider) or torch (torch.compile of --run, which the bundle was exported
from), each in an environment that has it. Writes RUNTIME.json with times, and RUNTIME.npz with the embeddings of all
images, to be compared.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeembed.arrays import FloatArray, UInt8Array
from edgeembed.device.bundle import read_bundle
from edgeembed.device.embedder import Embedder, embed_images
from edgeembed.device.image_files import find_images

WARMUP, RUNS, SECONDS = 20, 1000, 3.0
Run = Callable[[UInt8Array], FloatArray]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("runtime", choices=["tensorrt", "onnxruntime", "torch"])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    files = find_images(given.images)
    found: list[dict[str, Any]] = []
    embedded: dict[str, Any] = {"names": np.array([path.name for path in files])}
    for precision, provider, run in sessions(given.bundle, given.runtime, given.run):
        size = read_bundle(given.bundle).input
        for batch in given.batches:
            pixels_NHWC = np.random.default_rng(0).integers(0, 256, (batch, size.height, size.width, 3), dtype=np.uint8)
            row = {"runtime": given.runtime, "precision": precision, "provider": provider, "batch": batch}
            found.append({**row, **times(run, pixels_NHWC)})
            print(json.dumps(found[-1]), flush=True)
        embedded[precision] = embed_all(run, files, size.height, size.width).astype(np.float16)
    (given.out / f"{given.runtime}.json").write_text(json.dumps(found))
    np.savez(given.out / f"{given.runtime}.npz", **embedded)


def sessions(bundle: Path, runtime: str, run: Path | None) -> Iterator[tuple[str, str, Run]]:
    """(precision, what really runs it, the network) of every file that the bundle has for a runtime."""
    if runtime == "torch":
        assert run is not None
        yield from compiled(run)
        return
    suffix = ".plan" if runtime == "tensorrt" else ".onnx"
    for file in read_bundle(bundle).files:
        if file.path.endswith(suffix):
            opened = Embedder(bundle, precision=file.precision, runtime=runtime, provider="cuda").session
            yield file.precision, opened.provider, opened.run


def compiled(run: Path) -> Iterator[tuple[str, str, Run]]:
    """torch.compile with CUDA graphs, in float32 and in float16."""
    import torch

    from edgeembed.network.model_files import load_model
    from edgeembed.student.zoo import fuse

    model = fuse(load_model(run)[0]).cuda().eval()
    for precision in ("fp32", "fp16"):
        torch.compiler.reset()
        network = torch.compile(model, mode="reduce-overhead")

        def embed(pixels_NHWC: UInt8Array, *, network: Any = network, half: bool = precision == "fp16") -> FloatArray:
            with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=half):
                pixels = torch.from_numpy(pixels_NHWC).cuda(non_blocking=True).permute(0, 3, 1, 2)
                embedding_ND: FloatArray = network(pixels).float().cpu().numpy()
            return embedding_ND

        yield precision, torch.cuda.get_device_name(), embed


def times(run: Run, pixels_NHWC: UInt8Array) -> dict[str, float]:
    """Percentiles of one call in milliseconds, and images a second."""
    for _ in range(WARMUP):
        run(pixels_NHWC)
    samples_s: list[float] = []
    ends = time.perf_counter() + SECONDS
    while len(samples_s) < RUNS and time.perf_counter() < ends:
        started = time.perf_counter()
        run(pixels_NHWC)
        samples_s.append(time.perf_counter() - started)
    p50, p90, p99 = (1e3 * float(value) for value in np.percentile(samples_s, [50, 90, 99]))
    rate = len(pixels_NHWC) * len(samples_s) / sum(samples_s)
    return {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "n": len(samples_s), "images_per_second": rate}


def embed_all(run: Run, files: list[Path], height: int, width: int) -> FloatArray:
    """(N, D) of every file, 16 at once."""

    class Model:
        dim = run(np.zeros((1, height, width, 3), np.uint8)).shape[1]

        def shape(self, _image: Any) -> tuple[int, int]:
            return height, width

        def embed_pixels(self, image_NHWC: UInt8Array) -> FloatArray:
            missing = 16 - len(image_NHWC)  # one more shape would be compiled for the last few
            padded = np.concatenate([image_NHWC, np.zeros((missing, height, width, 3), np.uint8)])
            return run(padded)[: len(image_NHWC)]

    return embed_images(Model(), files, batch_size=16, on_skip=print)[0]


if __name__ == "__main__":
    main()
