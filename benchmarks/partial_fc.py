"""One step of a margin head with a million classes: all of them, and a sampled tenth (Partial FC), side by side.

Why: the head is what grows with the data, 64 numbers a class, and dense it costs as much as the network.
Usage: python benchmarks/partial_fc.py [--classes 1000000] [--steps 7]
Each variant runs in a process of its own, in turns, so that peak memory is its own; times are medians.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

RATES = (1.0, 0.1)


def measure(num_classes: int, rate: float, steps: int, batch_size: int = 128, dim: int = 64) -> dict[str, float]:
    import torch
    import torch.nn.functional as F

    from edgeembed.config import OptimSection
    from edgeembed.teacher.margin import ClassCentres, margin_loss
    from edgeembed.training.device import set_allocator
    from edgeembed.training.optimizers import build_optimizers, clip_gradients

    torch.manual_seed(0)
    started_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    centres = ClassCentres(num_classes, dim, sample_rate=rate)
    set_allocator(centres.weight.nbytes)
    empty = torch.nn.Identity()
    optimizers = build_optimizers(empty, empty, centres, OptimSection(), sparse_head=centres.sparse)
    seconds = []
    for _ in range(steps):
        embedding_BD = F.normalize(torch.randn(batch_size, dim), dim=1).requires_grad_()
        label_B = torch.randint(0, num_classes, (batch_size,))
        started = time.perf_counter()
        cosine_BK, column_B = centres(embedding_BD, label_B)
        margin_loss(cosine_BK, column_B, margin=0.3, scale=30.0).backward()
        clip_gradients(centres.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "rate": rate,
        "step_seconds": statistics.median(seconds[2:]),
        "peak_bytes": peak_bytes,
        "peak_over_imports_bytes": peak_bytes - started_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=7, help="the first two are not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, help="measure one variant in this process")
    asked = parser.parse_args()
    if asked.rate is not None:
        print(json.dumps(measure(asked.classes, asked.rate, asked.steps)))
        return
    found: dict[float, list[dict[str, float]]] = {rate: [] for rate in RATES}
    for _ in range(asked.rounds):
        for rate in RATES:
            command = [sys.executable, __file__, f"--classes={asked.classes}", f"--steps={asked.steps}"]
            output = subprocess.run([*command, f"--rate={rate}"], check=True, capture_output=True, text=True).stdout
            found[rate].append(json.loads(output))
    middle = {
        rate: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for rate, runs in found.items()
    }
    dense, sampled = (middle[rate] for rate in RATES)
    ratios = {f"{key}_ratio": sampled[key] / dense[key] for key in dense if key != "rate"}
    print(json.dumps({"classes": asked.classes, "dense": dense, "sampled": sampled, **ratios}, indent=2))


if __name__ == "__main__":
    main()
