"""What a student would cost on this machine, before anything is trained."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeembed.bench.latency import measure
from edgeembed.device.runtimes import open_session
from edgeembed.export.onnx import save_onnx, to_onnx
from edgeembed.student.names import timm_name
from edgeembed.student.zoo import build_student, count_macs, require_student_size

DIM = 64


def describe_student(name: str, *, size_px: int, threads: int | None) -> dict[str, Any]:
    """Parameters, multiply-accumulates of an image, and the median milliseconds of its fp32 ONNX file at batch 1.

    `threads` None: not timed. Raises UserError for a name or a size that is not known.
    """
    require_student_size(name, size_px)
    torch.manual_seed(0)
    model = build_student(name, weights="none", size_px=size_px, dim=DIM).eval()
    p50_ms = None
    if threads is not None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            save_onnx(to_onnx(model, {}), file)
            session = open_session(file, threads=threads)
            image_NHWC = np.zeros((1, size_px, size_px, 3), np.uint8)
            p50_ms = measure(lambda: session.run(image_NHWC), min_samples=30, min_seconds=0.5, max_seconds=5.0).p50
    return {
        "name": name,
        "timm": timm_name(name),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "macs": count_macs(model),
        "p50_ms": p50_ms,
    }
