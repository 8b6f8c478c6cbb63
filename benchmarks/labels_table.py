"""Trains the student's network on labels alone, on Grocery Store photographs, and tunes it on val like the student.

Why: the gain from a teacher is fair only against the best that the same network reaches without one.
Usage: taskset -c 0 python benchmarks/labels_table.py MANIFEST OUT [--only "muon 1e-2"] [--seeds 0]
Each variant trains mobilenetv4_conv_small with ArcFace at the student's image sizes, cut to 16 epochs on views of 80 px
(`--full`: the student's 80 epochs and growing views). Choose by the val column; the test column is for the chosen one.
One JSON line a run is added to OUT/results.jsonl; runs that are there already are not repeated. --table prints it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from variants import best_first, mean, parser_of, print_cells, read_results, run_variants, score_val_and_test, timed

NETWORK = [
    "backbone.name=mobilenetv4_conv_small",
    "image.canvas_factor=1.25",
    "image.size_px=144",
    "image.train_size_px=128",
    "optim.weight_decay=0.05",
    "train.batch_size=96",
    "train.epochs=80",
    "eval.every_steps=0",
    "train.checkpoint_every_steps=0",
]
SHORT = ["train.epochs=16", "image.start_size_px=null", "image.train_size_px=80", "image.size_px=104"]
SHORT += ["optim.warmup_epochs=2"]
MUON = ["optim.kind=muon", "optim.head_lr_factor=0.5"]
ADAMW = ["optim.kind=adamw", "optim.head_lr_factor=5"]
MILD = ["mix.cutmix_probability=0", "augment.scale=[0.5, 1.0]", "augment.drop_square_probability=0"]
GROWS = ["head.margin=0", "head.margin_growth_per_epoch=0.07", "head.margin_max=0.3"]
VARIANTS: dict[str, list[str]] = {
    "adamw 1.5e-3, mild": [*ADAMW, "optim.lr=1.5e-3", *MILD],
    "adamw 3e-3, mild": [*ADAMW, "optim.lr=3e-3", *MILD],
    "adamw 6e-3, mild": [*ADAMW, "optim.lr=6e-3", *MILD],
    "muon 5e-3, mild": [*MUON, "optim.lr=5e-3", *MILD],
    "muon 1e-2, mild": [*MUON, "optim.lr=1e-2", *MILD],
    "muon 2.2e-2, mild": [*MUON, "optim.lr=2.2e-2", *MILD],
    "muon 1e-2, mild, margin grows": [*MUON, "optim.lr=1e-2", *MILD, *GROWS],
    "muon 1e-2, mild, no margin": [*MUON, "optim.lr=1e-2", *MILD, "head.kind=normface"],
    "muon 1e-2, mild, cutmix .5": [*MUON, "optim.lr=1e-2", *MILD, "mix.cutmix_probability=0.5"],
    "muon 1e-2, the teacher's views": [*MUON, "optim.lr=1e-2"],
    "muon 1e-2, mild, no dropout": [*MUON, "optim.lr=1e-2", *MILD, "neck.dropout=0"],
}
FULL = " (full length)"


def print_table(rows: list[dict[str, Any]]) -> None:
    """Markdown, best on val first."""
    print_cells("variant", "seeds", "val mAP", "test mAP", "test recall@1")
    print_cells(*["---"] * 5)
    for variant, seeds in best_first(rows, "val"):
        recall = sum(row["test"]["recall_at_1"] for row in seeds) / len(seeds)
        print_cells(
            variant, str(len(seeds)), f"{mean(seeds, 'val'):.4f}", f"{mean(seeds, 'test'):.4f}", f"{recall:.4f}"
        )


def main() -> None:
    parser = parser_of(__doc__, "manifest")
    parser.add_argument("--full", action="store_true", help="the student's 80 epochs and growing views")
    options = parser.parse_args()
    if options.table:
        print_table(read_results(options.out))
        return
    length = FULL if options.full else ""

    def train(variant: str, seed: int, run: Path) -> float:
        keys = [*NETWORK, *([] if options.full else SHORT), f"train.seed={seed}", *VARIANTS[variant.removesuffix(FULL)]]
        command = [sys.executable, "-m", "edgeembed", "teacher-train", "--recipe", "grocery_cpu"]
        command += ["--data", str(options.manifest), "--out", str(run)]
        command += [word for key in keys for word in ("--set", key)]
        return timed(lambda: subprocess.run(command, check=True))

    variants = {f"{name}{length}": keys for name, keys in VARIANTS.items()}
    run_variants(options, variants, train, lambda _, run: score_val_and_test(run, options.manifest, precision="fp32"))


if __name__ == "__main__":
    main()
