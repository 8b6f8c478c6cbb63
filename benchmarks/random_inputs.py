"""Imports and decodes hundreds of random folders, tables and images: each comes out right or is refused by name.

Why: what people have is not what a data set's paper describes, and what is left out or misread without a word is found
out after a training run. What is right for each sample is computed here, from the rules and not with edgeembed's code.
Usage: python benchmarks/random_inputs.py [--count 300] [--seed 0] [--only N] [--keep DIR]
Samples are folders, tables and image files in turn; `--only N` repeats sample N alone, and `--keep DIR` leaves the
samples that went wrong (with `--only`, the sample) there. Prints one line a kind: how often it was tried, came out
right, was refused or left out by name, and was wrong; exits 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import random_folders
import random_images
import random_tables
from random_samples import REFUSED, RIGHT, WRONG, Outcome

from edgeembed.texts import printable

CHECKS: list[Callable[..., list[Outcome]]] = [random_folders.check, random_tables.check, random_images.check]
APART_EVERY = 25
"""One sample in so many goes through a process of its own, as a person starts it; the others through this one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="samples")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same samples")
    parser.add_argument("--only", type=int, help="the number of one sample to repeat")
    parser.add_argument("--keep", type=Path, help="folder that gets the samples that went wrong")
    asked = parser.parse_args()
    tally: dict[str, Counter[str]] = {}
    numbers = range(asked.count) if asked.only is None else [asked.only]
    with tempfile.TemporaryDirectory() as folder:
        # What `doctor` remembered on this machine must not decide which file embeds the samples.
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))
        for number in numbers:
            sample = Path(folder).resolve() / f"sample{number}"
            sample.mkdir()
            outcomes = outcomes_of(asked.seed, number, sample)
            for one in outcomes:
                tally.setdefault(one.kind, Counter())[one.outcome] += 1
                if one.outcome == WRONG:
                    print(printable(f"{number}: {one.kind}: {one.message}"), flush=True)
            if asked.keep is not None and (asked.only is not None or any(one.outcome == WRONG for one in outcomes)):
                shutil.copytree(sample, asked.keep / sample.name, symlinks=True, ignore=special_files)
            shutil.rmtree(sample)
    print_table(tally, asked.seed, len(numbers))
    sys.exit(any(counts[WRONG] for counts in tally.values()))


def outcomes_of(seed: int, number: int, sample: Path) -> list[Outcome]:
    """Everything that one sample tried; each kind of table comes in its turn, all else is drawn."""
    turn, kind = divmod(number, len(CHECKS))
    return CHECKS[kind](random.Random(f"{seed} {number}"), sample, turn=turn, apart=number % APART_EVERY == 0)


def special_files(folder: str, names: list[str]) -> list[str]:
    """What cannot be copied: pipes."""
    paths = ((name, os.path.join(folder, name)) for name in names)
    return [name for name, path in paths if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))]


def print_table(tally: dict[str, Counter[str]], seed: int, count: int) -> None:
    print(f"{count} samples of seed {seed}\n\n| kind | tried | {RIGHT} | {REFUSED} | {WRONG} |\n|---|---|---|---|---|")
    for kind, counts in [*sorted(tally.items()), ("all", sum(tally.values(), Counter()))]:
        cells = [sum(counts.values()), counts[RIGHT], counts[REFUSED], counts[WRONG]]
        print(f"| {kind} | " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
