"""Reports made up for tests of the page: no network runs, every figure is given."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from edgeembed.bench.examples import THUMBNAIL_PX, Example, Picture
from edgeembed.bench.report_schema import Report

SHA = "0123456789abcdef" * 4
LATENCY = {"p50": 12.34, "p90": 14.5, "p95": 16.1, "p99": 120.4, "n": 5000, "warmup": 9, "seconds": 3.0}


def scores(value: float | None, domains: list[str]) -> dict[str, Any]:
    figures = ("map", "map_at_100", "mp_at_5", "recall_at_1", "map_at_r")
    mean = dict.fromkeys(figures, value)
    half_widths = {"ci95": 0.035, "ci95_queries": 0.01, "ci95_classes": 0.035}
    return {
        **mean,
        "chance": {"map": None if value is None else 0.213},
        **{
            key: dict.fromkeys(figures, None if value is None else [value - half, value + half])
            for key, half in half_widths.items()
        },
        "per_domain": dict.fromkeys(domains, mean),
        "domain_mean": mean,
    }


def row(name: str, role: str, value: float | None, domains: list[str], **changed: Any) -> dict[str, Any]:
    kept, kinds = {"symmetric": 0.987, "asymmetric": 0.991}, ("symmetric", "asymmetric")
    if value is None:
        kept = dict.fromkeys(kinds)
    half_widths = {"ci95": 0.02, "ci95_queries": 0.005, "ci95_classes": 0.02}
    kept_intervals = {
        f"retention_{key}": {kind: None if value is None else [kept[kind] - half, kept[kind] + half] for kind in kinds}
        for key, half in half_widths.items()
    }
    return {
        "role": role,
        "name": name,
        "runtime": "torch" if role == "teacher" else "onnxruntime",
        "provider": "CPUExecutionProvider",
        "precision": "fp32",
        "batch": 1,
        "threads": 1,
        "size_bytes": 123_400_000,
        "params": 12_792_000 if role == "teacher" else 12_300_000,
        "macs": 1_230_000_000,
        "latency_ms": LATENCY,
        "preprocess_ms": 12.3,
        "end_to_end_ms": 123.4,
        "images_per_second": 81.2,
        "peak_rss_bytes": 1_234_000_000,
        "load_ms": 1234.5,
        "percent_of_floor": 45.6,
        "retrieval": {
            "symmetric": scores(value, domains),
            "asymmetric": None if role == "teacher" else scores(value, domains),
        },
        "retention": None if role == "teacher" else kept,
        **(dict.fromkeys(kept_intervals) if role == "teacher" else kept_intervals),
        "cosine_to_teacher": None if role == "teacher" else {"p1": 0.9, "p50": 0.95},
        "untrained": None if value is None else {"symmetric": {"map": 0.297}, "asymmetric": None},
        "spread": None,
        "sha256": SHA,
        **changed,
    }


def report_of(names: list[str], *, value: float | None = 0.8765, domains: int = 2, teacher: bool = True) -> Report:
    """A file of each name in fp32, one thread and two; the first is recommended."""
    things = [f"domain{number}" for number in range(domains)]
    rows = [row("vit_h14", "teacher", value, things)] if teacher else []
    rows += [row(name, "student", value, things, threads=threads) for name in names for threads in (1, 2)]
    value = {
        "schema": "edgeembed-report/1",
        "machine": {"cpu": "A CPU", "cores": 2, "architecture": "x86_64", "cpu_flags": ["avx2"], "system": "Linux",
                    "memory_bytes": 16_000_000_000},
        "versions": {"numpy": "2.0", "onnxruntime": "1.20"},
        "data": {
            "fingerprint": "f" * 16, "split": "test", "queries": 100, "index": 1000, "labels": 50, "unreadable": 0,
            "queries_without_match": 7,
            "not_scored": None if value is not None else "no query has a match",
            "domains": {domain: {"queries": 50, "index": 500} for domain in things},
        },
        "floor": {"gemm_gflops": {"fp32": {"1": 50.0, "2": 99.0}}, "copy_gb_per_s": 10.0},
        "rows": rows,
        "skipped": [{"name": f"{names[0]} fp16 (tensorrt)", "reason": "no GPU"}],
        "recommended": [
            {
                "name": names[0], "folder": f"bundles/{names[0]}", "path": "model.fp32.onnx", "precision": "fp32",
                "runtime": "onnxruntime", "sha256": SHA, "p50_ms": 12.34, "threads": 2, "is_measured": True,
                "in_use": "model.fp32.onnx in onnxruntime", "refused": [],
            }
        ],
    }  # fmt: skip
    return Report.model_validate(value)


def picture(width: int, height: int, label: str, is_right: bool | None = None) -> Picture:
    """A gradient of any size."""
    pixels = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG")
    return Picture(jpeg=encoded.getvalue(), label=label, is_right=is_right)


def examples_of(label: str, sizes: list[tuple[int, int]] | None = None) -> list[Example]:
    """Two queries with five results of teacher and student each."""
    sizes = sizes or [(THUMBNAIL_PX, THUMBNAIL_PX)] * 5
    found = [picture(*size, label, is_right=place % 2 == 0) for place, size in enumerate(sizes)]
    return [Example(query=picture(*sizes[0], label), results={"teacher": found, "student": found})] * 2
