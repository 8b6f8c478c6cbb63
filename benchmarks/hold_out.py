"""Leaves a random share of the classes out of training, so that retrieval of unseen classes can be measured.

Why: figures on trained classes say little about the next product in the catalogue.
Usage: python benchmarks/hold_out.py MANIFEST OUT.parquet [--share 0.333] [--seed 0]
The classes are drawn domain by domain. Their train rows get `repeat` 0: training leaves them out, and they stay in the
index. Their val rows are removed, as recipes are tuned on val. quality_table.py scores trained and unseen classes.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np

from edgeembed.data.manifest import Manifest, read_manifest, write_manifest


def held_out_classes(manifest: Manifest, *, share: float, seed: int) -> set[tuple[str, str]]:
    """The (domain, label) pairs to leave out of training."""
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
    print(f"{len(held_out)} of {len(manifest.class_names(np.arange(len(manifest))))} classes are left out of training")


if __name__ == "__main__":
    main()
