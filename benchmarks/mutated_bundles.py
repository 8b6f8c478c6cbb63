"""Damages a bundle in thousands of ways and opens each: whatever is wrong must be refused, in one line, at once.

Why: bundles are copied to devices, over bad links and onto bad cards, and come from strangers.
Usage: python benchmarks/mutated_bundles.py [BUNDLE] [--count 2000] [--seed 0]      default: the bundled model
Each damaged folder is verified and opened in every precision, each damaged packed file unpacked, in a process that is
watched: 5 seconds, 1 GB of memory, nothing written. A network that was not itself damaged may still open, and must
then give what it gave before. Prints a table by kind of damage; exits 1 if anything but a clear refusal happened.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from bundle_mutations import FILES, FOLDER, PACKED
from PIL import Image

from edgeembed.cli.app import app
from edgeembed.device.bundle import PACKED_SUFFIX, read_bundle, write_bundle
from edgeembed.device.bundle_schema import CARD, MANIFEST
from edgeembed.device.embedder import Embedder, default_bundle
from edgeembed.device.packing import pack
from edgeembed.errors import CheckFailed, UserError

SECONDS, MAX_RSS_BYTES, MAX_ADDRESS_BYTES, MAX_MESSAGE = 5.0, 2**30, 4 * 2**30, 1000
REFUSED, OUTCOMES = "refused", ("refused", "accepted", "unclear", "wrong", "crash", "hang", "memory", "written")
PRECISIONS = ("fp32", "int8")


class WrongEmbedding(Exception):
    """What was damaged is used as if it were whole."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    tally: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, kind, outcome, message in outcomes(asked.bundle, Path(folder), asked.count, asked.seed):
            tally.setdefault(kind, Counter())[outcome] += 1
            if outcome != REFUSED:
                print(f"{number}: {kind}: {outcome}: {message}", flush=True)
    print_table(tally)
    sys.exit(any(outcome != REFUSED for counts in tally.values() for outcome in counts))


def print_table(tally: dict[str, Counter[str]]) -> None:
    print("| damage | " + " | ".join(OUTCOMES) + " |\n|---|" + "---|" * len(OUTCOMES))
    for kind, counts in [*tally.items(), ("all", sum(tally.values(), Counter()))]:
        print(f"| {kind} | " + " | ".join(str(counts[outcome]) for outcome in OUTCOMES) + " |")


def outcomes(bundle: Path | None, folder: Path, count: int, seed: int) -> Iterator[tuple[int, str, str, str]]:
    """Number, kind, outcome and message of each mutation; the kinds take turns."""
    pristine = folder / "pristine" / "bundle"
    pristine.mkdir(parents=True)
    copy_sealed(bundle or default_bundle(), pristine)
    packed = folder / "pristine" / f"bundle{PACKED_SUFFIX}"
    pack(pristine, packed)
    kinds = [*((kind, True) for kind in FOLDER), *((kind, False) for kind in PACKED)]
    with Watched(pristine) as watched:
        for whole in (pristine, packed):  # what is not damaged must be accepted, or nothing is proven
            assert watched.open(whole) == ("accepted", ""), whole
        for number in range(count):
            kind, is_folder = kinds[number % len(kinds)]
            case = folder / "case"
            (case / "outside").mkdir(parents=True)
            target = case / ("bundle" if is_folder else packed.name)
            if is_folder:
                shutil.copytree(pristine, target, copy_function=os.link)
            else:
                os.link(packed, target)
            (FOLDER if is_folder else PACKED)[kind](random.Random(f"{seed} {number}"), target)
            before = tree(case)
            outcome, message = watched.open(target)
            if tree(case) != before:
                outcome = "written"
            yield number, kind, outcome, message
            shutil.rmtree(case)


def copy_sealed(source: Path, target: Path) -> None:
    """The two networks and the card of a bundle, under a seal, whatever its schema was."""
    manifest = read_bundle(source)
    for name in FILES[2:]:
        shutil.copyfile(source / name, target / name)
    kept = tuple(file for file in manifest.files if file.path in FILES)
    write_bundle(target, manifest.model_copy(update={"files": kept}), (source / CARD).read_text(encoding="utf-8"))
    assert sorted(path.name for path in target.iterdir()) == sorted(FILES), MANIFEST


def tree(folder: Path) -> list[tuple[str, int, int]]:
    """Every path below a folder, with the size and time of what lies there."""
    stats = ((path, path.lstat()) for path in sorted(folder.rglob("*")))
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats if not path.is_dir()]


class Watched:
    """A process that opens one bundle after another, and is replaced when it died, hung or grew too large."""

    def __init__(self, pristine: Path) -> None:
        self.pristine = pristine

    def __enter__(self) -> Watched:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fresh process: its memory is its own
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.pristine), daemon=True)
        self.process.start()
        theirs.close()
        assert self.pipe.recv() == "ready"

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()

    def open(self, target: Path) -> tuple[str, str]:
        self.pipe.send(target)
        try:
            answer: tuple[str, str] = self.pipe.recv() if self.pipe.poll(SECONDS) else ("hang", f"{SECONDS} s")
        except EOFError:
            self.process.join()
            answer = "crash", f"exit code {self.process.exitcode}"
        if answer[0] in ("hang", "crash", "memory"):
            self.stop()
            self.start()
        return answer


def serve(pipe: Connection, pristine: Path) -> None:
    """The watched process."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_BYTES, MAX_ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = {name: Embedder(pristine, precision=name, threads=1).embed(image) for name in PRECISIONS}
    pipe.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            outcome, message = open_all(pipe.recv(), image, expected)
            if peak_rss_bytes() > MAX_RSS_BYTES:
                outcome = "memory"
            pipe.send((outcome, message))


def open_all(target: Path, image: Image.Image, expected: dict[str, Any]) -> tuple[str, str]:
    """Everything that a person could do with it; the worst outcome counts."""
    command = (
        ["unpack", str(target), "--out", str(target.parent / "out")] if is_packed(target) else ["verify", str(target)]
    )
    results = [attempt(lambda: command_line("artifacts", *command))]
    if not is_packed(target):
        for precision, right in expected.items():
            result = attempt(lambda name=precision, right=right: embed(target, name, image, right))
            results += [result] if result[0] != "accepted" else []
    return max(results, key=lambda result: OUTCOMES.index(result[0]))


def is_packed(target: Path) -> bool:
    return target.name.endswith(PACKED_SUFFIX)


def command_line(*arguments: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        app(args=list(arguments), standalone_mode=False)  # exceptions come through as they are


def embed(target: Path, precision: str, image: Image.Image, right: Any) -> None:
    found = Embedder(target, precision=precision, threads=1).embed(image)
    if not np.array_equal(found, right):
        raise WrongEmbedding(f"{precision} opens and gives another embedding")


def attempt(action: Any) -> tuple[str, str]:
    """What came of it: a clear refusal is one of our own errors, short enough to read."""
    try:
        action()
    except (UserError, CheckFailed) as error:
        message = " ".join(str(error).split())
        return ("refused" if 10 < len(message) < MAX_MESSAGE else "unclear"), message[:MAX_MESSAGE]
    except WrongEmbedding as error:
        return "wrong", str(error)
    except MemoryError:
        return "memory", "MemoryError"
    except BaseException as error:
        return "crash", f"{type(error).__name__}: {error}"[:MAX_MESSAGE]
    return "accepted", ""


def peak_rss_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
