"""The full ViT-H-14 training step of two images: ours beside the same step written plainly in torch, in one run.

Why: what a toolchain adds around the model (margins, rates, clipping, logging) should cost nothing at that size.
Usage: python benchmarks/teacher_step.py [--name ViT-H-14] [--steps 4]
Both variants train the same network from the same random weights in bf16 with gradient checkpointing and fused AdamW,
in turns, each in a process of its own; times are medians without the first step, memory is the process's peak.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from step_times import step_moments

BATCH, CLASSES, SIZE_PX = 2, 81, 224


def plain(name: str, steps: int) -> list[float]:
    """A person's own loop: open_clip tower, linear neck, ArcFace, AdamW."""
    import math

    import open_clip
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    tower = open_clip.create_model(name, pretrained=None).visual
    tower.proj = None
    tower.set_grad_checkpointing(True)
    neck = torch.nn.Linear(tower.conv1.out_channels, 64)
    centres = torch.nn.Parameter(torch.randn(CLASSES, 64))
    parameters = [*tower.parameters(), *neck.parameters(), centres]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        image, label = torch.randn(BATCH, 3, SIZE_PX, SIZE_PX), torch.randint(0, CLASSES, (BATCH,))
        with torch.autocast("cpu", torch.bfloat16):
            feature = tower(image)
        embedding = F.normalize(neck(feature.float()), dim=1)
        cosine = (embedding @ F.normalize(centres, dim=1).T).clamp(-0.999999, 0.999999)
        one_hot = F.one_hot(label, CLASSES).bool()
        logits = 30.0 * torch.where(one_hot, torch.cos(torch.acos(cosine) + 0.3), cosine)
        assert math.isfinite(logits.sum().item())
        F.cross_entropy(logits, label).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
    return seconds


def ours(name: str, steps: int) -> list[float]:
    """The recipe vit_h14 on rendered images, through the real loop; step times are those of its log."""
    from edgeembed.config import load_recipe
    from edgeembed.data.default_set import write_default_set
    from edgeembed.data.manifest import read_manifest
    from edgeembed.run_folder import RunFolder
    from edgeembed.teacher.recipe import TeacherRecipe
    from edgeembed.teacher.train import train_teacher

    with tempfile.TemporaryDirectory() as folder, step_moments() as moments:
        write_default_set(Path(folder) / "data", num_instances=20, num_views=4, size_px=256, seed=0)
        overrides = [f"backbone.name={name}", "backbone.weights=none", f"train.max_steps={steps}"]
        overrides += [f"train.batch_size={BATCH}", "eval.every_steps=0", "train.checkpoint_every_steps=0"]
        recipe = load_recipe(TeacherRecipe, kind="teacher", name="vit_h14", overrides=overrides)
        train_teacher(recipe, read_manifest(Path(folder) / "data/manifest.parquet"), RunFolder(path=Path(folder) / "r"))
    return [after - before for before, after in itertools.pairwise(moments)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="ViT-H-14")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--variant", choices=["plain", "ours"])
    asked = parser.parse_args()
    if asked.variant:
        seconds = (plain if asked.variant == "plain" else ours)(asked.name, asked.steps)
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        median = statistics.median(seconds[1:] if asked.variant == "plain" else seconds)
        print(json.dumps({"step_seconds": median, "peak_gib": peak_bytes / 2**30}))
        return
    found: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    for _ in range(asked.rounds):
        for variant, runs in found.items():
            command = [sys.executable, __file__, f"--name={asked.name}", f"--steps={asked.steps}"]
            output = subprocess.run([*command, f"--variant={variant}"], check=True, stdout=subprocess.PIPE, text=True)
            runs.append(json.loads(output.stdout.splitlines()[-1]))
    middle = {
        variant: {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
        for variant, runs in found.items()
    }
    ratio = middle["ours"]["step_seconds"] / middle["plain"]["step_seconds"]
    print(json.dumps({"model": asked.name, **middle, "step_seconds_ratio": round(ratio, 3)}, indent=2))


if __name__ == "__main__":
    main()
