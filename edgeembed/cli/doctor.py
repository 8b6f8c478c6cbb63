"""`edgeembed doctor`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgeembed.cli.app import app, print_json

NEEDED_FOR = {
    "onnxruntime": "embed, search",
    "torch": "teacher-train, distill, export, bench",
    "timm": "students",
    "open_clip_torch": "the ViT-H-14 teacher",
    "onnxscript": "export",
    "onnxsim": "export",
    "openvino": "the OpenVINO runtime (optional)",
    "tensorrt": "engines for NVIDIA GPUs (optional; from the vendor's index, or tensorrt==8.5.3.1 on Python 3.10)",
}


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False) -> None:
    """Say what this machine can run."""
    import onnxruntime

    from edgeembed.run import machine, package_versions

    found: dict[str, Any] = {
        "machine": machine(),
        "versions": package_versions(),
        "onnxruntime_providers": onnxruntime.get_available_providers(),
    }
    if as_json:
        print_json(found)
        return
    described = found["machine"]
    memory = (described["memory_bytes"] or 0) / 2**30
    print(f"machine   {described['cpu']}, {described['cores']} cores, {memory:.1f} GiB, {described['system']}")
    print(f"flags     {', '.join(described['cpu_flags']) or 'none of those that matter'}")
    print(f"providers {', '.join(found['onnxruntime_providers'])}")
    for name, use in NEEDED_FOR.items():
        print(f"{name:16} {found['versions'].get(name, 'missing'):12} {use}")
