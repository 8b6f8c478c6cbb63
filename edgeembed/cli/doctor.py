"""`edgeembed doctor`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeembed.cli.app import app, print_json
from edgeembed.cli.artifacts import print_table

log = logging.getLogger(__name__)

NEEDED_FOR = {
    "onnxruntime": "embed, search, bench",
    "torch": "teacher-train, distill, export, bench --teacher",
    "timm": "students",
    "open_clip_torch": "the ViT-H-14 teacher",
    "onnxscript": "export",
    "onnxsim": "export",
    "openvino": "the OpenVINO runtime (optional)",
    "tensorrt": "engines for NVIDIA GPUs (optional; from NVIDIA's own index, or tensorrt==8.6.0 on Python 3.10)",
}


@app.command()
def doctor(
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="BUNDLE", help="Bundle folders; default: the bundled model.")
    ] = None,
    no_measure: Annotated[bool, typer.Option("--no-measure", help="Leave the bundles alone.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Measure with as many; default: all cores.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Say what this machine can run; measure and remember which file and runtime of a bundle are fastest here."""
    import onnxruntime

    from edgeembed.embedder import default_bundle
    from edgeembed.run import machine, package_versions

    found: dict[str, Any] = {
        "machine": machine(),
        "versions": package_versions(),
        "onnxruntime_providers": onnxruntime.get_available_providers(),
    }
    if not as_json:
        print_machine(found)
    if not no_measure:
        found["fastest"] = [measure(folder, threads) for folder in bundles or [default_bundle()]]
    if as_json:
        print_json(found)
        return
    for measured in found.get("fastest", []):
        plural = "" if measured["threads"] == 1 else "s"
        print(f"\n{measured['bundle']}, batch 1, {measured['threads']} thread{plural}:")
        rows = measured["timed"]
        print_table([{**row, "p50_ms": f"{row['p50_ms']:.2f}", "chosen": "*" if row["chosen"] else ""} for row in rows])


def print_machine(found: dict[str, Any]) -> None:
    described = found["machine"]
    memory = (described["memory_bytes"] or 0) / 2**30
    print(f"machine   {described['cpu']}, {described['cores']} cores, {memory:.1f} GiB, {described['system']}")
    print(f"flags     {', '.join(described['cpu_flags']) or 'none of those that matter'}")
    print(f"providers {', '.join(found['onnxruntime_providers'])}")
    for name, use in NEEDED_FOR.items():
        print(f"{name:16} {found['versions'].get(name, 'missing'):12} {use}")


def measure(folder: Path, threads: int | None) -> dict[str, Any]:
    """Times each verified file and runtime of a bundle and remembers the fastest."""
    from edgeembed.bundle import read_bundle
    from edgeembed.embedder import verified_with_weights
    from edgeembed.runtimes import available_cores
    from edgeembed.runtimes.fastest import remember, time_pairs, verified_pairs

    manifest = read_bundle(folder)
    pairs = verified_pairs(manifest)
    for file in {pair.file.path: pair.file for pair in pairs}.values():
        verified_with_weights(folder, manifest, file)
    log.info("timing %d files and runtimes of %s", len(pairs), manifest.name)
    timed = time_pairs(folder, manifest, threads=threads)
    fastest = remember(folder, timed, threads=threads)
    rows = [
        {
            "file": one.path,
            "runtime": one.runtime,
            "provider": one.provider,
            "p50_ms": round(one.p50_ms, 4),
            "chosen": one is fastest,
        }
        for one in timed
    ]
    return {"bundle": manifest.name, "threads": threads or available_cores(), "timed": rows}
