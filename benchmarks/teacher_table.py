"""What each part of a teacher recipe brings on Grocery Store photographs, at one short budget.

Why: a recipe should hold what was measured to help, and say what did not.
Usage: taskset -c 0 python benchmarks/teacher_table.py MANIFEST OUT [--only "base;GeM"] [--seeds 0,1]
Each variant changes a few keys of recipe grocery_cpu, cut to views of 80 px and 26 epochs of AdamW, and trains for
about the same time on one core (other networks and sizes get other epochs, Muon takes longer); two lists can run at
once, each on its own core. A finished run is scored on val and on test; base and resnet18d also with mirror images and
scales averaged. One JSON line a run is added to OUT/results.jsonl; runs that are there already are not repeated, so
that a table can grow. --table prints it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from variants import best_first, mean, parser_of, print_cells, read_results, run_variants, timed

from edgeembed.eval_json import leading_interval, scores_from_json
from edgeembed.intervals import interval_text

ADAMW = ["optim.kind=adamw", "optim.lr=1.5e-3", "optim.head_lr_factor=5", "train.batch_size=32"]
SHORT = [
    *ADAMW,
    "mix.cutmix_probability=0",
    "train.epochs=26",
    "image.start_size_px=null",
    "image.train_size_px=80",
    "image.size_px=104",
    "head.margin=0",
    "head.margin_growth_per_epoch=0.07",
    "head.margin_max=0.3",
    "optim.warmup_epochs=2",
    "eval.every_steps=0",
    "train.checkpoint_every_steps=0",
]
RESNET18D = ["backbone.name=resnet18d", "train.epochs=14"]
MUON_64 = ["optim.kind=muon", "train.batch_size=64"]
VARIANTS: dict[str, list[str]] = {
    "base": [],
    "no margin (normface)": ["head.kind=normface"],
    "margin .3 from the start": ["head.margin=0.3", "head.margin_growth_per_epoch=0"],
    "margin .5 from the start": ["head.margin=0.5", "head.margin_growth_per_epoch=0", "head.margin_max=0.5"],
    "margin grows to .5": ["head.margin_max=0.5"],
    "cosface, up to .2": ["head.kind=cosface", "head.margin_max=0.2"],
    "three sub-centres": ["head.centres_per_class=3"],
    "class margins .1 to .5": ["head.class_margins=[0.1, 0.5]", "head.margin_growth_per_epoch=0"],
    "scale 20": ["head.scale=20"],
    "GeM": ["backbone.pooling=gem"],
    "batch norm in the neck": ["neck.batch_norm=true"],
    "no dropout": ["neck.dropout=0"],
    "running average .998": ["train.ema_decay=0.998"],
    "cutmix .5": ["mix.cutmix_probability=0.5"],
    "rate 3e-3": ["optim.lr=3e-3"],
    "muon, rate 4e-3": ["optim.kind=muon", "optim.lr=4e-3", "optim.head_lr_factor=2"],
    "muon, rate 1e-2": ["optim.kind=muon", "optim.lr=1e-2", "optim.head_lr_factor=0.75"],
    "muon, rate 1e-2, batches of 64": [*MUON_64, "optim.lr=1e-2", "optim.head_lr_factor=0.75"],
    "muon, rate 2e-2, batches of 64": [*MUON_64, "optim.lr=2e-2", "optim.head_lr_factor=0.4"],
    "last 5 epochs milder": [
        "stages=[{name: hard, train: {epochs: 21}}, {name: mild, train: {epochs: 5}, optim: {lr: 3e-4, "
        "warmup_epochs: 0}, head: {margin: 0.3}, augment: {scale: [0.6, 1.0], drop_square_probability: 0}}]"
    ],
    "views of 96 px": ["image.train_size_px=96", "image.size_px=124", "train.epochs=19"],
    "batches of 16": ["train.batch_size=16", "train.epochs=21", "optim.lr=1e-3"],
    "batches of 64": ["train.batch_size=64", "train.epochs=29", "optim.lr=2e-3"],
    "cs3darknet_s": ["backbone.name=cs3darknet_s", "train.epochs=30"],
    "regnetx_004": ["backbone.name=regnetx_004", "train.epochs=22"],
    "resnet10t": ["backbone.name=resnet10t", "train.epochs=25"],
    "resnet18d": RESNET18D,
    "resnet18d, last stride 1": [*RESNET18D, "backbone.output_stride=16"],
    "resnet18d, no margin (normface)": [*RESNET18D, "head.kind=normface"],
    "resnet18d, margin grows to .5": [*RESNET18D, "head.margin_max=0.5"],
    "resnet18d, batches of 16": [*RESNET18D, "train.batch_size=16", "train.epochs=11", "optim.lr=1e-3"],
    "resnet18d, SGD .05, decay 2e-3": [
        *RESNET18D,
        "optim.kind=sgd",
        "optim.lr=0.05",
        "optim.head_lr_factor=1",
        "optim.weight_decay=2e-3",
        "train.clip_norm=null",
    ],
}
AVERAGED: dict[str, tuple[bool, tuple[float, ...]]] = {
    "val": (False, (1.0,)),
    "test": (False, (1.0,)),
    "test, flip": (True, (1.0,)),
    "test, flip and three scales": (True, (0.85, 1.0, 1.15)),
}


def score(variant: str, run: Path, manifest_path: Path) -> dict[str, dict[str, object]]:
    from edgeembed.data.manifest import read_manifest
    from edgeembed.evaluation import RetrievalProtocol
    from edgeembed.network.model import EmbeddingModel
    from edgeembed.network.model_files import load_model
    from edgeembed.training.validation import evaluate

    model, _ = load_model(run)
    assert isinstance(model, EmbeddingModel)
    manifest = read_manifest(manifest_path)
    scores = {}
    for name, (model.flip, model.scales) in AVERAGED.items():
        split, *averaging = name.split(", ")
        if averaging and variant not in ("base", "resnet18d"):
            continue
        planned = RetrievalProtocol.of_split(manifest, split)
        found = evaluate(model, planned, batch_size=64, workers=0, device="cpu", precision="bf16")
        scores[name] = asdict(found.scores)
    return scores


def print_table(rows: list[dict[str, Any]]) -> None:
    """Markdown, best first: means over seeds, their spread, and their mean difference from the base."""
    table = best_first(rows, "test")
    base = mean(dict(table)["base"], "test")
    print_cells(
        *("variant", "seeds", "seconds", "val mAP", "test mAP", "seeds from, to", "95 % interval"),
        "to base, points",
    )
    print_cells(*["---"] * 8)
    for variant, seeds in table:
        for split in [name for name in seeds[0] if name.startswith("test")]:
            found = [row[split]["map"] for row in seeds]
            first = scores_from_json(seeds[0][split])
            ends = interval_text(first.ci95["map"])
            print_cells(
                ", ".join([variant, *split.split(", ")[1:]]),
                str(len(found)),
                f"{statistics.mean(row['seconds'] for row in seeds):.0f}",
                f"{mean(seeds, 'val'):.3f}" if split == "test" else "",
                f"{mean(seeds, split):.4f}",
                f"{min(found):.4f}, {max(found):.4f}" if len(found) > 1 else "",
                f"{ends} over {leading_interval(first, 'map')}",
                f"{100 * (mean(seeds, split) - base):+.1f}",
            )


def main() -> None:
    asked = parser_of(__doc__, "manifest").parse_args()
    if asked.table:
        print_table(read_results(asked.out))
        return

    def train(variant: str, seed: int, run: Path) -> float:
        keys = [*SHORT, f"train.seed={seed}", *VARIANTS[variant]]
        command = [sys.executable, "-m", "edgeembed", "teacher-train", "--recipe", "grocery_cpu"]
        command += ["--data", str(asked.manifest), "--out", str(run)]
        command += [word for key in keys for word in ("--set", key)]
        return timed(lambda: subprocess.run(command, check=True))

    run_variants(asked, VARIANTS, train, lambda variant, run: score(variant, run, asked.manifest))


if __name__ == "__main__":
    main()
