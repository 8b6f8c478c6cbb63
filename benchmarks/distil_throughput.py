"""Images a second of one student: on labels, from stored targets, and with its teacher asked live, in one run.

Why: a stored teacher is worth its disk only if distillation then runs at the speed of ordinary training.
Usage: python benchmarks/distil_throughput.py MANIFEST [--student mobilenetv4_s] [--teacher vit_base_patch16_224]
The teacher has random weights; every variant runs in a process of its own, in turns, through the loop that users run.
Times are medians of steps, without the first ones, then of rounds. Ends with one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from step_times import step_moments

VARIANTS = ("labels", "stored", "live")


def measure(variant: str, manifest: Path, folder: Path, asked: argparse.Namespace) -> float:
    """Images a second of a short run, from the times between the steps of its log."""
    from edgeembed.cli import run

    steps = asked.live_steps if variant == "live" else asked.steps
    keys = [f"image.size_px={asked.size_px}", f"train.batch_size={asked.batch_size}", f"train.max_steps={steps}"]
    keys += [f"train.precision={asked.precision}", "eval.every_steps=0", "train.epochs=1000", "train.workers=2"]
    keys += ["train.checkpoint_every_steps=0", "train.cache=always"]
    out = folder / f"{variant}-{time.monotonic_ns()}"
    if variant == "labels":
        command = ["teacher-train", "--recipe", "grocery_cpu", "--set", f"backbone.name={asked.timm_model_name}"]
        keys += ["image.train_size_px=null", "image.start_size_px=null", "mix.cutmix_probability=0"]
        keys += ["augment.drop_square_probability=0", "optim.kind=adamw", "optim.lr=7e-4"]
    else:
        command = ["distill", "--student", asked.student, "--teacher", str(folder / "teacher"), "--set"]
        command += ["student.weights=none", "--set", f"targets.store={'none' if variant == 'live' else 'auto'}"]
        command += ["--set", f"targets.views={asked.views}"]
    options = [word for key in keys for word in ("--set", key)]
    with step_moments() as moments:
        assert run([*command, "--data", str(manifest), "--out", str(out), *options]) == 0
    seconds = [after - before for before, after in itertools.pairwise(moments)][2:]
    return asked.batch_size / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--student", default="mobilenetv4_s")
    parser.add_argument("--teacher", default="vit_base_patch16_224")
    parser.add_argument("--size-px", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--live-steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variant", choices=VARIANTS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--timm-name", default="")
    asked = parser.parse_args()
    if asked.variant:
        print(json.dumps(measure(asked.variant, asked.manifest, asked.folder, asked)))
        return
    from edgeembed.student.aliases import timm_model_name

    asked.timm_model_name = timm_model_name(asked.student)
    cli = [sys.executable, "-m", "edgeembed"]
    size = [f"image.size_px={asked.size_px}", "image.train_size_px=null", "image.start_size_px=null"]
    found: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        keys = [*size, f"backbone.name={asked.teacher}", "train.max_steps=1", "train.batch_size=4"]
        keys += ["eval.every_steps=0", "train.cache=never"]
        make = [*cli, "teacher-train", "--recipe", "grocery_cpu", "--data", str(asked.manifest)]
        make += ["--out", f"{folder}/teacher", *(word for key in keys for word in ("--set", key))]
        subprocess.run(make, check=True)
        fill = [*cli, "targets", "build", "--teacher", f"{folder}/teacher", "--data", str(asked.manifest), "--json"]
        fill += ["--views", str(asked.views), "--set", f"image.size_px={asked.size_px}"]
        built = json.loads(subprocess.run(fill, check=True, stdout=subprocess.PIPE, text=True).stdout)
        options = [f"--{name.replace('_', '-')}={value}" for name, value in vars(asked).items() if value is not None]
        options = [option for option in options if not option.startswith(("--manifest", "--folder", "--variant"))]
        for _ in range(asked.rounds):
            for variant, rates in found.items():
                command = [sys.executable, __file__, str(asked.manifest), f"--variant={variant}", f"--folder={folder}"]
                output = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE, text=True).stdout
                rates.append(float(json.loads(output.splitlines()[-1])))
    middle = {variant: statistics.median(rates) for variant, rates in found.items()}
    images = built["images"]
    epoch = {variant: images / rate for variant, rate in middle.items()}
    result = {
        "student": asked.student,
        "teacher": asked.teacher,
        "images_per_second": {variant: round(rate, 1) for variant, rate in middle.items()},
        "stored_over_labels": round(middle["stored"] / middle["labels"], 3),
        "stored_over_live": round(middle["stored"] / middle["live"], 2),
        "targets_per_second": round(built["computed"] / built["seconds"], 1),
        "first_epoch_with_building_images_per_second": round(
            images / (epoch["stored"] + built["seconds"] / asked.views), 1
        ),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
