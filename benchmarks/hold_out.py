"""Keeps a seeded share of the classes out of all training, so that a table can have a row of unseen classes.

Why: figures on the classes that a model was trained on say little of the next product in the catalogue.
Usage: python benchmarks/hold_out.py MANIFEST OUT.parquet [--share 0.333] [--seed 0]
Of each domain a share of the classes is drawn. Their train rows get `repeat` 0: training leaves them out, evaluation
searches among them. Their val rows are left out, as a recipe may be chosen by val. quality_table.py scores both parts.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np

from edgeembed.data.manifest import Manifest, read_manifest, write_manifest


def held_out_classes(manifest: Manifest, *, share: float, seed: int) -> set[tuple[str, str]]:
    """The (domain, label) pairs that are kept out of training."""
    draw, held_out = random.Random(seed), set()
    names = manifest.class_names(np.arange(len(manifest)))
    for domain in sorted({domain for domain, _ in names}):
        of_domain = [name for name in names if name[0] == domain]
        held_out |= set(draw.sample(of_domain, round(share * len(of_domain))))
    return held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=1 / 3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    manifest = read_manifest(options.manifest)
    held_out = held_out_classes(manifest, share=options.share, seed=options.seed)
    is_held_out = [(domain, label) in held_out for domain, label in zip(manifest.domain, manifest.label, strict=True)]
    rows = np.array([row for row in range(len(manifest)) if not (is_held_out[row] and manifest.split[row] == "val")])
    every_row = manifest.visits(np.arange(len(manifest)))
    repeat = [0 if is_held_out[row] else int(every_row[row]) for row in rows]
    write_manifest(options.out, manifest.take(rows).with_repeat(repeat))
    print(f"{len(held_out)} of {len(manifest.class_names(np.arange(len(manifest))))} classes are never trained on")


if __name__ == "__main__":
    main()
