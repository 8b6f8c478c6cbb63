"""`edgeembed students`: the student networks and their costs."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Annotated

import typer

from edgeembed.cli.app import app, print_json
from edgeembed.cli.options import Json
from edgeembed.errors import UserError

log = logging.getLogger(__name__)


@app.command()
def students(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Student aliases or timm model names; default: every alias."),
    ] = None,
    size_px: Annotated[
        int, typer.Option(min=16, max=2048, help="Side of the input in pixels (recipe key image.size_px).")
    ] = 224,
    threads: Annotated[int, typer.Option(min=1, help="Number of threads of ONNX Runtime.")] = 1,
    latency: Annotated[
        bool,
        typer.Option(
            help="Also export each network to ONNX and measure it on this machine, which takes some seconds each."
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """List student networks with their parameters, multiply-accumulates and latency on this machine."""
    from edgeembed.network.weight_packages import weight_package
    from edgeembed.student.aliases import ALIASES, timm_model_name

    chosen = names or list(ALIASES)
    # Raises UserError for an unknown name before torch is imported.
    for name in chosen:
        timm_model_name(name)

    from edgeembed.bench.student_costs import StudentCosts, measure_student  # imports torch: after the other checks

    rows: list[StudentCosts] = []
    if not as_json:
        print(f"{'student':22} {'timm name':31} {'M params':>9} {'G MACs':>8} {'p50 ms':>8}")
    for name in chosen:
        try:
            row = measure_student(name, size_px=size_px, threads=threads if latency else None)
        except UserError as error:
            if names:
                raise
            # Some networks take one input size only: the others are still worth listing.
            log.warning("left out: %s", error)
            continue
        rows.append(row)
        if not as_json:
            # Each line is printed as soon as it is measured: a long list takes minutes.
            time = f"{row.p50_ms:8.2f}" if row.p50_ms is not None else f"{'':8}"
            timm = row.timm + ("" if row.blocks is None else f", {row.blocks} blocks")
            timm += "" if row.attention_blocks is None else f" + {row.attention_blocks} of ViT"
            print(f"{name:22} {timm:31} {row.params / 1e6:9.2f} {row.macs / 1e9:8.3f} {time}", flush=True)
    packaged = [f"{row.name} ({package.distribution})" for row in rows if (package := weight_package(row.timm))]
    if packaged and not as_json:
        print(f"pretrained weights without a network, from packages (extra [weights]): {', '.join(packaged)}")
    if as_json:
        print_json(
            {"size_px": size_px, "threads": threads, "precision": "fp32", "students": [asdict(row) for row in rows]}
        )
