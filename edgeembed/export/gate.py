"""Refuses an exported file that is worse than promised, measured with the file itself on real images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeembed.bundle import Parity
from edgeembed.teacher.evaluate import FloatArray

MIN_COSINE_P1 = {"fp32": 0.9999, "fp16": 0.999}
MIN_COSINE_P50 = {"int8": 0.98}
MAX_MAP_LOSS = {"fp16": 0.005, "int8": 0.01}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Parity and mAP of one file, and why it is refused, if it is."""

    precision: str
    parity: Parity
    map: float | None
    map_fp32: float | None
    reasons: tuple[str, ...]


def parity(reference_ND: FloatArray, candidate_ND: FloatArray) -> Parity:
    """Agreement of two embeddings of the same images; both are unit vectors."""
    if candidate_ND.shape != reference_ND.shape or not np.isfinite(candidate_ND).all():
        return Parity(cosine_p1=-1.0, cosine_p50=-1.0, max_abs=float("inf"), images=len(reference_ND))
    cosine_N = np.einsum("nd,nd->n", reference_ND.astype(np.float64), candidate_ND.astype(np.float64))
    p1, p50 = np.percentile(cosine_N, [1, 50])
    largest = float(np.abs(reference_ND - candidate_ND).max())
    return Parity(cosine_p1=float(p1), cosine_p50=float(p50), max_abs=largest, images=len(reference_ND))


def judge(precision: str, agreement: Parity, map_: float | None, map_fp32: float | None) -> Verdict:
    """Holds the figures of one file against the thresholds of its precision."""
    reasons = []
    if agreement.cosine_p1 < MIN_COSINE_P1.get(precision, -1.0):
        reasons.append(f"cosine p1 {agreement.cosine_p1:.5f} is below {MIN_COSINE_P1[precision]}")
    if agreement.cosine_p50 < MIN_COSINE_P50.get(precision, -1.0):
        reasons.append(f"cosine p50 {agreement.cosine_p50:.5f} is below {MIN_COSINE_P50[precision]}")
    if map_ is not None and map_fp32 is not None and precision in MAX_MAP_LOSS:
        loss = map_fp32 - map_
        if loss > MAX_MAP_LOSS[precision]:
            reasons.append(
                f"mAP {map_:.4f} is {100 * loss:.2f} points below fp32's {map_fp32:.4f}, "
                f"more than {100 * MAX_MAP_LOSS[precision]:g}"
            )
    return Verdict(precision=precision, parity=agreement, map=map_, map_fp32=map_fp32, reasons=tuple(reasons))
