"""What each loss term, each number of views and each optimiser brings a student on Grocery Store photographs.

Why: the defaults of a distillation recipe should be those that won here, and what did not help should be known.
Usage: taskset -c 0 python benchmarks/distil_table.py MANIFEST TEACHER OUT [--only "base;labels .02"] [--seeds 0,1]
Each variant changes a few keys of recipe grocery_cpu, cut to 16 epochs on views of 80 px. View counts are set
beside each other on a quarter of the training images and 64 epochs, which is the same work. The teacher's answers are
stored beforehand and their cost is not counted. A finished student is scored on val and on test, in its own index and
in its teacher's, both with all training images. One JSON line a run is added to OUT/results.jsonl; runs that are there
already are not repeated, so that a table can grow. --table prints it.
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from variants import best_first, mean, parser_of, print_cells, read_results, run_variants, timed

from edgeembed.eval_json import leading_interval, scores_from_json
from edgeembed.intervals import interval_text

SHORT = [
    "train.epochs=16",
    "image.start_size_px=null",
    "image.train_size_px=80",
    "image.size_px=104",
    "targets.views=8",
    "optim.warmup_epochs=2",
    "eval.every_steps=0",
    "train.checkpoint_every_steps=0",
]
BATCHES_OF_48 = "train.batch_size=48"
NO_RELATIONS = ["loss.cross_relation=0", "loss.self_relation=0"]
QUARTER = ["train.epochs=64", "optim.warmup_epochs=8"]
VARIANTS: dict[str, list[str]] = {
    "base": [],
    "cosine only": [*NO_RELATIONS, "loss.centre_kl=0"],
    "cosine and relations": ["loss.centre_kl=0"],
    "cosine and centre KL": NO_RELATIONS,
    "relations only": ["loss.cosine=0", "loss.centre_kl=0"],
    "centre KL 1": ["loss.centre_kl=1"],
    "cosine and standardised .1": [*NO_RELATIONS, "loss.centre_kl=0", "loss.standardised=0.1"],
    "standardised .5 only": [*NO_RELATIONS, "loss.cosine=0", "loss.centre_kl=0", "loss.standardised=0.5"],
    "embedding KL .1": ["loss.centre_kl=0", "loss.anchor_kl=0.1"],
    "embedding KL 1": ["loss.centre_kl=0", "loss.anchor_kl=1"],
    "labels .02": ["loss.label=0.02"],
    "labels .1, margin .2": ["loss.label=0.1", "loss.label_margin=0.2"],
    "quarter of the images, 1 view": [*QUARTER, "targets.views=1"],
    "quarter of the images, 4 views": [*QUARTER, "targets.views=4"],
    "quarter of the images, 16 views": [*QUARTER, "targets.views=16"],
    "quarter of the images, 50 views": [*QUARTER, "targets.views=50"],
    "cutmix .3": ["mix.cutmix_probability=0.3"],
    "mixup .3": ["mix.mixup_probability=0.3"],
    "no dropped squares": ["augment.drop_square_probability=0"],
    "milder crops": ["augment.scale=[0.5, 1.0]"],
    "student vit_t16": ["student.name=vit_t16", "image.size_px=96"],
    "student tiny_vit_5m": ["student.name=tiny_vit_5m"],
    "student efficientvit_b0": ["student.name=efficientvit_b0"],
    "student edgenext_xx_small": ["student.name=edgenext_xx_small"],
    "student efficientvit_m2": ["student.name=efficientvit_m2"],
    "student repvit_m0_9": ["student.name=repvit_m0_9"],
    "decay .02": ["optim.weight_decay=0.02"],
    "adamw, rate 2.5e-3, batches of 48": ["optim.kind=adamw", "optim.lr=2.5e-3", BATCHES_OF_48],
    "adamw, rate 6e-3, batches of 48": ["optim.kind=adamw", "optim.lr=6e-3", BATCHES_OF_48],
    "muon, rate 2.5e-3, batches of 48": ["optim.lr=2.5e-3", BATCHES_OF_48],
    "muon, rate 4e-3, batches of 48": ["optim.lr=4e-3", BATCHES_OF_48],
    "muon, rate 6e-3, batches of 48": ["optim.lr=6e-3", BATCHES_OF_48],
    "muon, rate 1e-2, batches of 48": ["optim.lr=1e-2", BATCHES_OF_48],
    "muon, rate 1.6e-2, batches of 48": ["optim.lr=1.6e-2", BATCHES_OF_48],
    "muon, rate 2.5e-2, batches of 48": ["optim.lr=2.5e-2", BATCHES_OF_48],
    "muon, rate 8e-3": ["optim.lr=8e-3"],
    "muon, rate 1.5e-2": ["optim.lr=1.5e-2"],
    "muon, rate 2.5e-2": ["optim.lr=2.5e-2"],
    "muon, rate 4e-2": ["optim.lr=4e-2"],
}


@functools.cache
def embed(run: Path, manifest_path: Path, split: str) -> Any:
    """A run's embeddings of the images of a protocol (`EmbeddedRows`)."""
    from edgeembed.data.manifest import read_manifest
    from edgeembed.evaluation import EmbeddedRows, RetrievalProtocol
    from edgeembed.network.model_files import load_model
    from edgeembed.training.embed import embed_files

    protocol = RetrievalProtocol.of_split(read_manifest(manifest_path), split)
    model, _ = load_model(run)
    embedding_ND, kept = embed_files(model, protocol.files, batch_size=64, workers=0, device="cpu", precision="bf16")
    return EmbeddedRows(embedding_ND=embedding_ND, row_N=protocol.rows[kept])


def score(run: Path, teacher: Path, manifest_path: Path) -> dict[str, dict[str, object]]:
    from edgeembed.data.manifest import read_manifest
    from edgeembed.evaluation import RetrievalProtocol

    manifest, scores = read_manifest(manifest_path), {}
    for split in ("val", "test"):
        protocol, student = RetrievalProtocol.of_split(manifest, split), embed(run, manifest_path, split)
        for kind, indexed_by in {"symmetric": run, "asymmetric": teacher}.items():
            scored = protocol.score(student, embed(indexed_by, manifest_path, split))
            scores[f"{split}, {kind}"] = asdict(scored.scores)
    return scores


def print_table(rows: list[dict[str, Any]]) -> None:
    """Markdown, best first on the teacher's index: means over seeds, and differences from the base."""
    table = best_first(rows, "test, asymmetric")
    base = dict(table)["base"]
    print_cells(
        *("variant", "seeds", "seconds", "val", "test, own index", "to base", "test, teacher's index", "to base"),
        "95 % interval",
    )
    print_cells(*["---"] * 9)
    for variant, seeds in table:
        first = scores_from_json(seeds[0]["test, asymmetric"])
        ends = interval_text(first.ci95["map"])
        tested = []
        for split in ("test, symmetric", "test, asymmetric"):
            tested += [f"{mean(seeds, split):.4f}", f"{100 * (mean(seeds, split) - mean(base, split)):+.1f}"]
        print_cells(
            variant,
            str(len(seeds)),
            f"{statistics.mean(row['seconds'] for row in seeds):.0f}",
            f"{mean(seeds, 'val, symmetric'):.3f}, {mean(seeds, 'val, asymmetric'):.3f}",
            *tested,
            f"{ends} over {leading_interval(first, 'map')}",
        )


def main() -> None:
    asked = parser_of(__doc__, "manifest", "teacher").parse_args()
    if asked.table:
        print_table(read_results(asked.out))
        return
    from edgeembed.data.manifest import read_manifest, write_manifest

    def train(variant: str, seed: int, run: Path) -> float:
        data = asked.manifest
        if variant.startswith("quarter"):
            manifest, data = read_manifest(data), asked.out / "quarter.parquet"
            write_manifest(data, manifest.take(manifest.rows("train")[::4]))
        common = ["--recipe", "grocery_cpu", "--teacher", str(asked.teacher), "--data", str(data)]
        keys = [*SHORT, f"train.seed={seed}", *VARIANTS[variant]]
        options = [word for key in keys for word in ("--set", key)]
        subprocess.run([sys.executable, "-m", "edgeembed", "targets", "build", *common, *options], check=True)
        command = [sys.executable, "-m", "edgeembed", "distill", "--out", str(run)]
        return timed(lambda: subprocess.run([*command, *common, *options], check=True))

    run_variants(asked, VARIANTS, train, lambda _, run: score(run, asked.teacher, asked.manifest))


if __name__ == "__main__":
    main()
