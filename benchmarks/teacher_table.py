"""What each part of a teacher recipe brings on Grocery Store photographs, at one short budget.

Why: a recipe should hold what was measured to help, and say what did not.
Usage: python benchmarks/teacher_table.py MANIFEST OUT [--only base,cosface] [--seeds 0,1,2]
Each variant changes a few keys of recipe grocery_cpu, trains for about the same time (epochs are scaled by what a step
costs) and is scored on val and on test. One JSON line a run is added to OUT/results.jsonl; runs that are there already
are not repeated, so that a table can grow.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

EPOCHS = 16
VARIANTS: dict[str, list[str]] = {
    "base": [],
    "margin fixed at .3": ["head.margin=0.3", "head.margin_growth_per_epoch=0"],
    "no margin (normface)": ["head.kind=normface"],
    "cosface .2": ["head.kind=cosface", "head.margin_max=0.2"],
    "three sub-centres": ["head.centres_per_class=3"],
    "class margins .1 to .5": ["head.class_margins=[0.1, 0.5]", "head.margin_growth_per_epoch=0"],
    "GeM": ["backbone.pooling=gem"],
    "batch norm in the neck": ["neck.batch_norm=true"],
    "running average .998": ["train.ema_decay=0.998"],
    "cutmix .5": ["mix.cutmix_probability=0.5"],
    "flip averaged": ["inference.flip=true"],
    "three scales averaged": ["inference.scales=[0.85, 1.0, 1.15]"],
    "layer decay .8": ["optim.layer_decay=0.8"],
    "SGD .05": ["optim.kind=sgd", "optim.lr=0.05", "optim.head_lr_factor=1", "optim.weight_decay=5e-4"],
    "stages: mild at the end": [
        "stages=[{name: hard, train: {epochs: 13}}, {name: mild, train: {epochs: 3}, optim: {lr: 2e-4, "
        "warmup_epochs: 0}, head: {margin: 0.26}, augment: {scale: [0.6, 1.0], drop_square_probability: 0}}]"
    ],
    "views of 128 px at equal time": ["image.train_size_px=128", "image.size_px=160", "train.epochs=13"],
    "views of 96 px at equal time": ["image.train_size_px=96", "image.size_px=128", "train.epochs=20"],
    "resnet10t at equal time": ["backbone.name=resnet10t", "train.epochs=27"],
    "resnet26d at equal time": ["backbone.name=resnet26d", "train.epochs=12"],
    "regnetx_004 at equal time": ["backbone.name=regnetx_004", "train.epochs=32"],
}


def score(run: Path, manifest_path: Path) -> dict[str, dict[str, object]]:
    from edgeembed.data.manifest import read_manifest
    from edgeembed.teacher.evaluate import evaluate
    from edgeembed.teacher.saved import load_model

    model, _ = load_model(run)
    manifest = read_manifest(manifest_path)
    return {
        split: asdict(evaluate(model, manifest, split, batch_size=64, workers=2, device="cpu", precision="bf16"))
        for split in ("val", "test")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", help="variants, by commas; default: all")
    parser.add_argument("--seeds", default="0")
    asked = parser.parse_args()
    results = asked.out / "results.jsonl"
    asked.out.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(row["variant"], row["seed"]) for row in known}
    for seed in map(int, asked.seeds.split(",")):
        for variant in asked.only.split(",") if asked.only else VARIANTS:
            if (variant, seed) in done:
                continue
            run = asked.out / f"{variant}-{seed}".replace(" ", "_").replace("/", "_")
            keys = [f"train.epochs={EPOCHS}", "head.margin_growth_per_epoch=0.0625", "optim.warmup_epochs=2"]
            keys += [f"train.seed={seed}", "eval.every_steps=0", "train.checkpoint_every_steps=0", *VARIANTS[variant]]
            command = [sys.executable, "-m", "edgeembed", "teacher-train", "--recipe", "grocery_cpu"]
            command += ["--data", str(asked.manifest), "--out", str(run)]
            started = time.monotonic()
            subprocess.run([*command, *(word for key in keys for word in ("--set", key))], check=True)
            seconds = time.monotonic() - started
            scores = score(run, asked.manifest)
            row = {"variant": variant, "seed": seed, "seconds": round(seconds), **scores}
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            for split, values in scores.items():
                print(f"{variant:32} seed {seed}  {seconds:4.0f} s  {split:4}  mAP {values['map']:.4f}", flush=True)


if __name__ == "__main__":
    main()
