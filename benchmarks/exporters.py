"""One image's latency beside what a user would choose instead: torch, timm's export, optimum, OpenVINO with NNCF.

Why: a bundle is worth having only if it is not slower than the same network through anybody else's exporter.
Usage: python benchmarks/exporters.py RUN BUNDLE --images FOLDER [--optimum-python P] [--nncf-python P] --out table.md
RUN is a finished run, BUNDLE what `edgeembed export` made of it. Every contestant gets the same weights, sits in a
process of its own and is measured in turns with all others, batch 1, from a prepared tensor, from uint8 pixels and
from JPEG files (read before, so from memory). Where a process happens to put its memory moves the time of decoding by a
fifth, so that all are opened anew several times. What cannot be had is named with its reason. One JSON line a
contestant is added beside the table, to table.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from exporters_child import CONTESTANTS, read_resized
from exporters_files import ORDER

HERE = Path(__file__).parent
MODES = {"tensor": "network alone", "pixels": "from pixels", "jpeg": "from a JPEG"}
TIMED_IMAGES = 8
PATIENCE_SECONDS = 900
SETTLE_SECONDS = 0.3  # idle OpenMP workers spin for 0.2 s before they sleep


@dataclass(frozen=True, kw_only=True)
class Child:
    """A contestant that is open, and its median milliseconds of each round, by mode."""

    name: str
    title: str
    process: subprocess.Popen[str]
    ready: dict[str, Any]
    rounds: dict[str, list[float]] = field(default_factory=dict)

    def ask(self, mode: str, seconds: float) -> None:
        assert self.process.stdin is not None
        print(json.dumps({"mode": mode, "seconds": seconds}), file=self.process.stdin, flush=True)
        self.rounds.setdefault(mode, []).append(float(answer(self.process)["p50_ms"]))

    def median_ms(self, mode: str) -> float | None:
        return statistics.median(self.rounds[mode]) if mode in self.rounds else None


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """A child's next line. Raises RuntimeError for one that has ended or hangs."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], PATIENCE_SECONDS)[0]:
        process.kill()
        raise RuntimeError(f"no answer in {PATIENCE_SECONDS} s")
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"ended with {process.wait()}")
    return dict(json.loads(line))


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"


def write_job(asked: argparse.Namespace, folder: Path) -> None:
    """What every process of the run reads: which images, which constants."""
    from edgeembed.device.image_files import find_images

    facts = json.loads((asked.run / "model.json").read_text())
    size_px = facts["input"]["height"]
    found = find_images(asked.images)
    spread = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, asked.calibration_images).astype(int))]
    jpegs = [path for path in found if path.suffix.lower() in (".jpg", ".jpeg")]
    timed = [jpegs[i] for i in np.unique(np.linspace(0, len(jpegs) - 1, TIMED_IMAGES).astype(int))]
    np.save(folder / "calibration.npy", np.stack([read_resized(path, size_px) for path in spread]))
    np.save(folder / "pixels.npy", np.stack([read_resized(path, size_px) for path in timed]))
    job = {
        "run": str(asked.run.resolve()),
        "bundle": str(asked.bundle.resolve()),
        "size_px": size_px,
        "mean": facts["input"]["mean"],
        "std": facts["input"]["std"],
        "images": [str(path.resolve()) for path in timed],
    }
    (folder / "job.json").write_text(json.dumps(job))


def write_files(asked: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Makes every peer's files; returns why each way that failed did."""
    pythons = {"nncf": asked.nncf_python}
    failed: dict[str, str] = {}
    for way in (each.__name__ for each in ORDER):
        python = asked.optimum_python if way.startswith("optimum") else pythons.get(way, sys.executable)
        print(f"writing {way} ...", file=sys.stderr, flush=True)
        log = folder / f"{way}.log"
        with log.open("w") as file:
            command = [python, str(HERE / "exporters_files.py"), way, str(folder)]
            done = subprocess.run(command, stdout=file, stderr=file, check=False)
        if done.returncode:
            failed[way] = last_line(log)
    if "reference" in failed:
        raise SystemExit(f"error: {asked.run}: {failed['reference']}")
    return failed


def open_children(folder: Path, threads: int, failed: dict[str, str]) -> tuple[list[Child], dict[str, str]]:
    """Every contestant that can be had, one after the other; and why the others cannot."""
    children: list[Child] = []
    skipped: dict[str, str] = {}
    for name, (title, ways, _) in CONTESTANTS.items():
        print(f"opening {name} ...", file=sys.stderr, flush=True)
        reasons = [failed[way] for way in ways if way in failed]
        if reasons:
            skipped[name] = reasons[0]
            continue
        log = folder / f"{name}.log"
        command = [sys.executable, str(HERE / "exporters_child.py"), name, str(folder), str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True, env=environment
        )
        try:
            children.append(Child(name=name, title=title, process=process, ready=answer(process)))
        except RuntimeError as error:
            skipped[name] = f"{last_line(log)} ({error})"
    return children, skipped


def measure(children: list[Child], skipped: dict[str, str], *, rounds: int, seconds: float, settle: float) -> None:
    """Rounds in turns, a mode after the other; one that fails leaves and is named in `skipped`."""
    for mode in MODES:
        for round_ in range(rounds):
            print(f"{MODES[mode]}: round {round_ + 1} of {rounds}", file=sys.stderr, flush=True)
            for child in [each for each in children if mode in each.ready["modes"]]:
                try:
                    child.ask(mode, seconds)
                except (RuntimeError, OSError) as error:
                    skipped[child.name] = str(error)
                    children.remove(child)
                time.sleep(settle)


def close(child: Child) -> None:
    assert child.process.stdin is not None
    child.process.stdin.close()
    child.process.wait()


def cosine_of_two(folder: Path) -> float:
    """What two different images have in common, for the cosines of the table to be read by."""
    cosine_NN = (reference_ND := np.load(folder / "reference.npy")) @ reference_ND.T
    return float(np.median(cosine_NN[~np.eye(len(cosine_NN), dtype=bool)]))


def table(children: list[Child], skipped: dict[str, str], threads: int, described: str) -> str:
    """Sorted by precision, then by the time from pixels."""
    lines = [f"{described}; {threads} thread{'s' * (threads > 1)}", ""]
    heads = ["", "precision", *(f"{title}, ms" for title in MODES.values()), "against the fastest, from pixels"]
    heads += ["from a JPEG", "cosine to torch, p50, from pixels", "from a JPEG", ""]
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    order = {"fp32": 0, "int8": 1}
    kept = sorted(children, key=lambda c: (order.get(c.ready["precision"], 2), c.median_ms("pixels") or 0.0))
    for child in kept:
        equals = [each for each in children if each.ready["precision"] == child.ready["precision"]]
        cells = [child.title, child.ready["precision"]]
        cells += [f"{ms:.3f}" if (ms := child.median_ms(mode)) else "" for mode in MODES]
        for mode in ("pixels", "jpeg"):
            fastest = min(each.median_ms(mode) or float("inf") for each in equals)
            cells.append(f"{(child.median_ms(mode) or 0.0) / fastest:.2f}")
        for mode in ("pixels", "jpeg"):
            cosine = child.ready["cosine"][mode]
            cells.append("" if cosine is None else f"{cosine:.5f}")
        cells.append(child.ready["note"])
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"- skipped: {CONTESTANTS[name][0]} ({name}): {why}" for name, why in skipped.items())]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs, some of them JPEG")
    parser.add_argument("--optimum-python", default=sys.executable, help="one with optimum-onnx[onnxruntime]")
    parser.add_argument("--nncf-python", default=sys.executable, help="one with nncf and openvino")
    parser.add_argument("--calibration-images", type=int, default=300, help="for the peers' int8; default: nncf's")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--openings", type=int, default=5, help="processes of each contestant, one after the other")
    parser.add_argument("--rounds", type=int, default=2, help="of each opening")
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()

    from edgeembed.machine import describe_machine, package_versions

    machine, versions = describe_machine().to_json(), package_versions()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_job(asked, folder)
        failed = write_files(asked, folder)
        texts = []
        for threads in asked.threads:
            settle = SETTLE_SECONDS if threads > 1 else 0.0
            by_name: dict[str, Child] = {}
            for _ in range(asked.openings):
                opened, skipped = open_children(folder, threads, failed)
                measure(opened, skipped, rounds=asked.rounds, seconds=asked.seconds, settle=settle)
                for child in opened:
                    close(child)
                    known = by_name.setdefault(child.name, child)
                    if known is not child:
                        for mode, times in child.rounds.items():
                            known.rounds[mode] += times
            children = list(by_name.values())
            described = f"{asked.run.name}: medians of {asked.rounds} rounds of {asked.seconds} s in turns, in each of "
            described += f"{asked.openings} processes; "
            described += f"cosine of two different images, p50: {cosine_of_two(folder):.3f}"
            texts.append(table(children, skipped, threads, described))
            with asked.out.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
                for child in children:
                    row = {"run": asked.run.name, "name": child.name, "title": child.title, "threads": threads}
                    row |= {**child.ready, "rounds_p50_ms": child.rounds, "machine": machine, "versions": versions}
                    file.write(json.dumps(row) + "\n")
            asked.out.write_text("\n".join(texts))
        print("\n".join(texts))


if __name__ == "__main__":
    main()
