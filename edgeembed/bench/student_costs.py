"""Measures what a student would cost on this machine, before anything is trained."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgeembed.bench.latency import Budget
from edgeembed.device.runtimes import open_session
from edgeembed.export.onnx import save_onnx, to_onnx
from edgeembed.network.macs import count_macs
from edgeembed.network.model import num_params
from edgeembed.student.aliases import num_attention_blocks_of, num_blocks_of, timm_model_name
from edgeembed.student.zoo import build_student, require_student_size

# The default of the recipes.
DIM = 64
BUDGET = Budget(min_samples=30, min_seconds=0.5, max_seconds=5.0)


@dataclass(frozen=True, kw_only=True)
class StudentCosts:
    """Parameters, multiply-accumulates of one image, and the median time of the fp32 ONNX file at batch 1 in ms.

    `blocks`: how many of the first blocks of the timm model are kept; None: all. `attention_blocks`: how many
    transformer blocks are added; None: none.
    """

    name: str
    timm: str
    blocks: int | None
    attention_blocks: int | None
    params: int
    macs: int
    p50_ms: float | None


def measure_student(name: str, *, size_px: int, threads: int | None) -> StudentCosts:
    """Builds a student with random weights and counts it; times its ONNX file unless `threads` is None.

    Raises UserError for a name or a size that is not known.
    """
    require_student_size(name, size_px)
    # Neither size nor time depends on the values of the weights.
    torch.manual_seed(0)
    model = build_student(name, weights="none", size_px=size_px, dim=DIM).eval()
    p50_ms = None
    if threads is not None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            save_onnx(to_onnx(model, {}), file)
            session = open_session(file, threads=threads)
            image_NHWC = np.zeros((1, size_px, size_px, 3), np.uint8)
            p50_ms = BUDGET.measure(lambda: session.run(image_NHWC)).p50
    return StudentCosts(
        name=name,
        timm=timm_model_name(name),
        blocks=num_blocks_of(name),
        attention_blocks=num_attention_blocks_of(name),
        params=num_params(model),
        macs=count_macs(model),
        p50_ms=p50_ms,
    )
