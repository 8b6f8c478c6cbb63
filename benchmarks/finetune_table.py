"""What each part of fine-tuning a pretrained teacher brings on Grocery Store photographs, at one short budget.

Why: rates, optimisers and margins that suit random weights may not suit pretrained ones.
Usage: taskset -c 0 python benchmarks/finetune_table.py MANIFEST OUT [--weights FILE] [--only "base;muon"] [--seeds 0,1]
Each variant changes a few keys of recipe finetune, cut to 5 epochs of smaller views. A finished run is scored on val
and on test. One JSON line a run is added to OUT/results.jsonl; runs that are there already are not repeated, so that a
table can grow. --table prints it, sorted by val, on which the recipe was chosen.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from variants import best_first, mean, parser_of, print_cells, read_results, run_variants, score_val_and_test

from edgeembed.files import read_json
from edgeembed.intervals import interval_text

SHORT = ["train.epochs=5", "eval.every_steps=0", "train.checkpoint_every_steps=0", "train.workers=1"]
SHORT += ["image.size_px=192", "image.train_size_px=144", "image.start_size_px=112"]
NO_DECAY, TRAINED_NORM = "optim.layer_decay=1", "backbone.frozen_batch_norm=false"
MUON = ["optim.kind=muon", "optim.block_rows=128"]
NECK_FIRST = (
    "stages=[{name: neck, train: {epochs: 60, batch_size: 256}, optim: {lr: 5e-3, head_lr_factor: 10}, "
    "head: {margin: 0.7}, image: {start_size_px: null}, augment: {drop_square_probability: 0}, "
    "backbone: {frozen: true, stored_views: 3}}, {name: all}]"
)
VARIANTS: dict[str, list[str]] = {
    "base": [],
    "backbone rate 1e-3, no layer decay, trained batch norm": ["optim.backbone_lr_factor=1", NO_DECAY, TRAINED_NORM],
    "trained batch norm": [TRAINED_NORM],
    "no layer decay": [NO_DECAY],
    "layer decay .8": ["optim.layer_decay=0.8"],
    "backbone rate 1.5e-4": ["optim.backbone_lr_factor=0.15"],
    "backbone rate 6e-4": ["optim.backbone_lr_factor=0.6"],
    "muon": MUON,
    "muon, three times the rates": [*MUON, "optim.lr=3e-3", "optim.head_lr_factor=7"],
    "margin .5": ["head.margin=0.5"],
    "cutmix .3": ["mix.cutmix_probability=0.3"],
    "running average .99": ["train.ema_decay=0.99"],
    "neck first, then all at 3e-4, margin .5, 4 epochs": [
        NECK_FIRST,
        *("optim.lr=3e-4", "optim.backbone_lr_factor=1", "optim.head_lr_factor=10"),
        *("head.margin=0.5", "train.epochs=4", "image.start_size_px=null"),
    ],
    "preserve .3": ["preserve.weight=0.3"],
    "preserve 1": ["preserve.weight=1"],
}


def print_table(rows: list[dict[str, Any]]) -> None:
    """Markdown, best first on val: means over seeds, and their differences from the base in points of val mAP."""
    table = best_first(rows, "val")
    base = mean(dict(table)["base"], "val")
    print_cells("variant", "seeds", "val mAP", "95 % interval", "to base, points", "test mAP", "test recall@1")
    print_cells(*["---"] * 7)
    for variant, seeds in table:
        print_cells(
            variant,
            str(len(seeds)),
            f"{mean(seeds, 'val'):.3f}",
            interval_text(seeds[0]["val"]["ci95"]["map"]),
            f"{100 * (mean(seeds, 'val') - base):+.1f}",
            f"{mean(seeds, 'test'):.3f}",
            f"{sum(row['test']['recall_at_1'] for row in seeds) / len(seeds):.3f}",
        )


def main() -> None:
    parser = parser_of(__doc__, "manifest")
    parser.add_argument("--weights", default="pretrained", help="pretrained, or a file")
    asked = parser.parse_args()
    if asked.table:
        print_table(read_results(asked.out))
        return

    def train(variant: str, seed: int, run: Path) -> float:
        keys = [*SHORT, f"backbone.weights={asked.weights}", f"train.seed={seed}", *VARIANTS[variant]]
        command = [sys.executable, "-m", "edgeembed", "teacher-train", "--recipe", "finetune"]
        command += ["--data", str(asked.manifest), "--out", str(run)]
        # A run that is finished already is only scored.
        if not (run / "eval.json").is_file():
            subprocess.run([*command, *[word for key in keys for word in ("--set", key)]], check=True)
        return float(read_json(run / "eval.json")["seconds"])

    run_variants(asked, VARIANTS, train, lambda _, run: score_val_and_test(run, asked.manifest, precision="bf16"))


if __name__ == "__main__":
    main()
