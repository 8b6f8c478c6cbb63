"""Measures the fastest speed that this machine allows, with which a model's time is compared.

No network runs faster than its multiply-accumulates at the speed of the best matrix product measured here, nor than
its weights can be read (Williams et al. 2009, the roofline). The peak is the fastest library's for each type, else a
percentage of it could pass 100: ONNX Runtime for fp32, fp16 and int8, torch (oneDNN) for bf16, where it is installed.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from edgeembed.bench.matmul_model import product_model

SIDE, TRIAL_SIDE = 2048, 512
TRIAL_SECONDS, SECONDS_EACH = 0.03, 0.12
SLOW_SECONDS = 0.6  # where one product of SIDE would take longer, the one of TRIAL_SIDE is enough
COPY_BYTES = 192 * 2**20  # well beyond any cache
BOUNDED_BY = {"fp32": ("fp32",), "fp16": ("fp16", "fp32"), "int8": ("int8", "fp32"), "bf16": ("bf16", "fp32")}
"""The products that a file of a precision may be computed with: some CPUs have none that is faster than fp32."""

Call = Callable[[], object]
Product = Callable[[str, int, int], Call]
"""A square product of a precision, a side and a number of threads, ready to be called."""


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Peak rates: GFLOP/s (two per multiply-accumulate) by precision and threads, GB/s of copying (read + written).

    None for a rate that cannot be measured here.
    """

    gemm_gflops: dict[str, dict[str, float | None]]
    copy_gb_per_s: float
    cache_bytes: int = 0

    def best_of(self, other: Roofline) -> Roofline:
        """The higher of two measurements: other work on the machine only ever lowers one."""
        gemm = {
            precision: {
                threads: _higher(rate, other.gemm_gflops[precision][threads]) for threads, rate in rates.items()
            }
            for precision, rates in self.gemm_gflops.items()
        }
        copied = max(self.copy_gb_per_s, other.copy_gb_per_s)
        return Roofline(gemm_gflops=gemm, copy_gb_per_s=copied, cache_bytes=self.cache_bytes)

    def percent_of_roofline(
        self, *, macs: int | None, num_bytes: int, precision: str, threads: int | None, latency_ms: float
    ) -> float | None:
        """The least possible time in percent of the measured time; None where a figure for it is missing.

        `num_bytes` of weights: only those beyond the last-level cache are read again in every call.
        """
        peaks = [self.gemm_gflops[kind].get(str(threads)) for kind in BOUNDED_BY.get(precision, ())]
        measured_peaks = [peak for peak in peaks if peak is not None]
        if macs is None or not measured_peaks:
            return None
        compute_s = 2 * macs / (max(measured_peaks) * 1e9)
        # Compute and memory traffic overlap, so the slower of the two is the bound.
        read_s = max(0, num_bytes - self.cache_bytes) / (self.copy_gb_per_s * 1e9)
        return 100 * max(compute_s, read_s) / (latency_ms / 1e3)


def _higher(one: float | None, other: float | None) -> float | None:
    return max((rate for rate in (one, other) if rate is not None), default=None)


def measure_roofline(threads: Sequence[int]) -> Roofline:
    """Measures this machine, in a few seconds. bf16 needs torch and is None without it."""
    products: dict[str, Product | None] = {"fp32": _onnx_product, "fp16": _onnx_product, "int8": _onnx_product}
    products["bf16"] = None if importlib.util.find_spec("torch") is None else _torch_product
    gemm = {
        precision: {
            str(count): None if product is None else round(_gflops(product, precision, count), 2) for count in threads
        }
        for precision, product in products.items()
    }
    return Roofline(
        gemm_gflops=gemm, copy_gb_per_s=round(_copy_gb_per_s(max(threads)), 2), cache_bytes=last_level_cache_bytes()
    )


def _gflops(product: Product, precision: str, threads: int) -> float:
    """The best rate of a square product; a small one is tried first, so that a slow machine does not take long."""
    operations, trial = 2 * SIDE**3, 2 * TRIAL_SIDE**3
    rate = trial / _best_seconds(product(precision, TRIAL_SIDE, threads), TRIAL_SECONDS)
    # The large product is closer to the peak, but would take seconds on a slow CPU.
    if operations / rate <= SLOW_SECONDS:
        rate = max(rate, operations / _best_seconds(product(precision, SIDE, threads)))
    return rate / 1e9


def _best_seconds(call: Call, budget_seconds: float = SECONDS_EACH) -> float:
    """The shortest of the calls that fit in the budget: noise only ever adds time."""
    call()  # warm-up: weights are packed, threads started
    best, deadline = float("inf"), time.perf_counter() + budget_seconds
    while best == float("inf") or time.perf_counter() < deadline:
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best


ONNX_TYPES: dict[str, tuple[str, type[np.generic], type[np.generic], type[np.generic]]] = {
    "fp32": ("MatMul", np.float32, np.float32, np.float32),
    "fp16": ("MatMul", np.float16, np.float16, np.float16),
    "int8": ("MatMulInteger", np.uint8, np.int8, np.int32),
}
"""Operator, and the types of X, W and their product."""


def _onnx_product(precision: str, side: int, threads: int) -> Call:
    """X (fed) times W (a constant, so that it is packed once, as weights are), in ONNX Runtime, without copies."""
    operator, *types = ONNX_TYPES[precision]
    left, weight, out = (np.ones((side, side), kind) for kind in types)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1  # a graph of one node
    model = product_model(operator, left, weight, out)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", left)
    product = onnxruntime.OrtValue.ortvalue_from_numpy(out)
    binding.bind_ortvalue_output("y", product)

    def multiply(_kept: tuple[object, ...] = (left, product)) -> None:  # a binding keeps neither alive by itself
        session.run_with_iobinding(binding)

    return multiply


def _torch_product(precision: str, side: int, threads: int) -> Call:
    import torch

    assert precision == "bf16"
    left, right, out = (torch.ones(side, side, dtype=torch.bfloat16) for _ in range(3))

    def multiply() -> None:
        threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            torch.mm(left, right, out=out)
        finally:
            torch.set_num_threads(threads_before)

    return multiply


def _copy_gb_per_s(threads: int) -> float:
    """Memory copied by all threads at once, one part each: a single thread rarely uses the whole bandwidth."""
    source, target = np.ones(COPY_BYTES, np.uint8), np.zeros(COPY_BYTES, np.uint8)
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        seconds = _best_seconds(lambda: list(pool.map(lambda part: np.copyto(part[1], part[0]), parts)))
    return 2 * COPY_BYTES / seconds / 1e9


def last_level_cache_bytes() -> int:
    """The size of the largest cache on Linux; elsewhere 32 MiB, so that the least time is never too long."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 2**10, "M": 2**20}.get(text[-1:], 1)
        digits = text.rstrip("KM")
        sizes.append(int(digits) * unit if digits.isdigit() else 0)
    return max(sizes, default=32 * 2**20)
