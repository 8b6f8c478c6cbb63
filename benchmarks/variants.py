"""A table of variants that grows run by run: what the scripts that compare recipes share.

One JSON line a run is added to OUT/results.jsonl; runs that are there already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

Scores = dict[str, dict[str, Any]]


def parser_of(description: str | None, *inputs: str) -> argparse.ArgumentParser:
    """Takes the inputs, OUT, and which variants and seeds to run, or --table."""
    parser = argparse.ArgumentParser(description=description)
    for name in (*inputs, "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--only", help="variants, separated by semicolons; default: all")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--table", action="store_true", help="print what is there")
    return parser


def read_results(out: Path) -> list[dict[str, Any]]:
    results = out / "results.jsonl"
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def best_first(rows: list[dict[str, Any]], split: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """Each variant with the rows of its seeds, sorted by their mean mAP on a split."""
    seeds_of: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        seeds_of.setdefault(row["variant"], []).append(row)
    return sorted(seeds_of.items(), key=lambda item: -mean(item[1], split))


def mean(seeds: list[dict[str, Any]], split: str) -> float:
    return statistics.mean(row[split]["map"] for row in seeds)


def print_cells(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |")


def run_variants(
    asked: argparse.Namespace,
    variants: Iterable[str],
    train: Callable[[str, int, Path], float],
    score: Callable[[str, Path], Scores],
) -> None:
    """Trains and scores each variant and seed that has no result yet; `train` returns the seconds that count."""
    asked.out.mkdir(parents=True, exist_ok=True)
    done = {(row["variant"], row["seed"]) for row in read_results(asked.out)}
    for seed in map(int, asked.seeds.split(",")):
        for variant in asked.only.split(";") if asked.only else variants:
            if (variant, seed) in done:
                continue
            run = asked.out / f"{variant}-{seed}".replace(" ", "_").replace("/", "_")
            seconds = train(variant, seed, run)
            scores = score(variant, run)
            row = {"variant": variant, "seed": seed, "seconds": round(seconds), **scores}
            with (asked.out / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            for split, values in scores.items():
                print(f"{variant:32} seed {seed}  {seconds:4.0f} s  {split:18}  mAP {values['map']:.4f}", flush=True)


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call took."""
    started = time.monotonic()
    call()
    return time.monotonic() - started


def score_val_and_test(run: Path, manifest_path: Path, *, precision: str) -> Scores:
    """Scores a finished teacher run on val and on test, on the CPU."""
    from edgeembed.data.manifest import read_manifest
    from edgeembed.evaluation import RetrievalProtocol
    from edgeembed.network.model_files import load_model
    from edgeembed.training.validation import evaluate

    model, _ = load_model(run)
    manifest = read_manifest(manifest_path)
    protocols = {split: RetrievalProtocol.of_split(manifest, split) for split in ("val", "test")}
    return {
        split: asdict(evaluate(model, each, batch_size=64, workers=0, device="cpu", precision=precision).scores)
        for split, each in protocols.items()
    }
