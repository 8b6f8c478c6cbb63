"""What each precision of exported bundles keeps and costs: agreement with torch, mAP on the test protocol, time.

Why: an export is judged on the images of its gate; held-out queries, and the time that int8 is for, must agree.
Usage: python benchmarks/export_table.py --data MANIFEST BUNDLE...     prints one line of a Markdown table a file
One thread, batch 1, ONNX Runtime; files of a bundle take turns, and the median over rounds is given.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np

from edgeembed.bench.latency import Budget
from edgeembed.bench.retrieval import DecodedFiles, choose_protocol, embed_with_session
from edgeembed.data.manifest import read_manifest
from edgeembed.device.bundle import read_bundle, verified_file
from edgeembed.device.bundle_schema import BundleFile, BundleManifest
from edgeembed.device.runtimes import open_session
from edgeembed.evaluation import ScoredQueries
from edgeembed.export.gate import measure_map_loss

ROUNDS = 7


def p50_ms(paths: dict[str, Path], manifest: BundleManifest) -> dict[str, float]:
    """By precision; one round of every file after the other, as what else the machine does comes and goes."""
    sessions = {name: open_session(path, threads=1) for name, path in paths.items()}
    pixels = np.random.default_rng(0).integers(
        0, 256, (1, manifest.input.height, manifest.input.width, 3), dtype=np.uint8
    )
    rounds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            budget = Budget(min_samples=20, min_seconds=0.5, max_seconds=2.0, warmup_seconds=0.1)
            rounds[name].append(budget.measure(lambda run=session.run: run(pixels)).p50)
    return {name: statistics.median(found) for name, found in rounds.items()}


def line(name: str, file: BundleFile, ms: float, ms_fp32: float, found: ScoredQueries, fp32: ScoredQueries) -> str:
    assert file.parity is not None
    loss, gate_loss = measure_map_loss(fp32, found), file.measure_map_loss
    quantisation = file.quantisation
    cells = [
        name,
        file.precision,
        f"{file.bytes / 1e6:.2f}",
        f"{file.parity.cosine_p1:.5f}",
        f"{file.parity.cosine_p50:.5f}",
        f"{100 * gate_loss.value:.2f}" if gate_loss else "",
        f"{found.scores.map:.4f}",
        loss.points.replace(" points", "") if file.precision != "fp32" else "",
        f"{ms:.2f}",
        f"{ms / ms_fp32:.2f}",
        f"{quantisation.calibration}, {len(quantisation.float_operators)} in float" if quantisation else "",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    asked = parser.parse_args()
    evaluation = choose_protocol(read_manifest(asked.data))
    titles = ["student", "precision", "MB", "cosine p1", "p50", "gate: points lost", "mAP, test", "points lost, test"]
    titles += ["p50 ms", "of fp32", "int8 ranges"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for folder in asked.bundles:
        manifest = read_bundle(folder)
        files = {file.precision: file for file in manifest.files if file.path.endswith(".onnx")}
        paths = {name: verified_file(folder, file) for name, file in files.items()}
        decoded = DecodedFiles(evaluation.files, manifest.input.height, manifest.input.width)
        found = {}
        for name, path in paths.items():
            embedded = embed_with_session(open_session(path), decoded, evaluation.rows, dim=manifest.embedding.dim)
            assert len(embedded.row_N) == len(evaluation.rows)
            found[name] = evaluation.score(embedded, embedded)
        ms = p50_ms(paths, manifest)
        for name, file in files.items():
            print(line(manifest.name, file, ms[name], ms["fp32"], found[name], found["fp32"]), flush=True)


if __name__ == "__main__":
    main()
