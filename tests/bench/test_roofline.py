from __future__ import annotations

import pytest

from edgeembed.bench import roofline
from edgeembed.bench.roofline import Roofline, measure_roofline

KNOWN = Roofline(gemm_gflops={"fp32": {"1": 100.0}, "int8": {"1": 50.0}}, copy_gb_per_s=10.0, cache_bytes=1_000_000)


def test_compute_bounds_a_network_with_few_bytes() -> None:
    percent = KNOWN.percent_of_roofline(macs=50_000_000, num_bytes=0, precision="fp32", threads=1, latency_ms=4.0)
    assert percent == pytest.approx(25.0)  # 100 MFLOP at 100 GFLOP/s take 1 ms


def test_only_bytes_beyond_the_cache_are_read_each_time() -> None:
    percent = KNOWN.percent_of_roofline(macs=1, num_bytes=21_000_000, precision="fp32", threads=1, latency_ms=4.0)
    assert percent == pytest.approx(50.0)  # 20 MB at 10 GB/s take 2 ms
    cached = KNOWN.percent_of_roofline(macs=1, num_bytes=900_000, precision="fp32", threads=1, latency_ms=4.0)
    assert cached is not None
    assert cached < 0.01


def test_int8_is_compared_with_the_fastest_product_that_it_may_use() -> None:
    percent = KNOWN.percent_of_roofline(macs=50_000_000, num_bytes=0, precision="int8", threads=1, latency_ms=1.0)
    assert percent == pytest.approx(100.0)


def test_the_higher_of_two_measurements_counts() -> None:
    slower = Roofline(gemm_gflops={"fp32": {"1": 90.0}, "int8": {"1": 60.0}}, copy_gb_per_s=11.0, cache_bytes=1_000_000)
    best = slower.best_of(KNOWN)
    assert best.gemm_gflops == {"fp32": {"1": 100.0}, "int8": {"1": 60.0}}
    assert best.copy_gb_per_s == 11.0


@pytest.mark.parametrize(("macs", "precision", "threads"), [(None, "fp32", 1), (1, "fp4", 1), (1, "fp32", 3)])
def test_what_is_not_known_is_none(macs: int | None, precision: str, threads: int) -> None:
    percent = KNOWN.percent_of_roofline(macs=macs, num_bytes=1, precision=precision, threads=threads, latency_ms=1.0)
    assert percent is None


def test_the_measured_roofline_has_every_type_and_thread_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SIDE": 64,
        "TRIAL_SIDE": 32,
        "TRIAL_SECONDS": 0,
        "SECONDS_EACH": 0,
        "COPY_BYTES": 1000,
    }.items():
        monkeypatch.setattr(roofline, name, value)
    found = measure_roofline((1, 2))
    assert set(found.gemm_gflops) == {"fp32", "fp16", "int8", "bf16"}
    assert all(set(rates) == {"1", "2"} for rates in found.gemm_gflops.values())
    assert found.copy_gb_per_s > 0


@pytest.mark.training
def test_torch_keeps_its_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for name, value in {"SIDE": 64, "TRIAL_SIDE": 32, "TRIAL_SECONDS": 0, "SECONDS_EACH": 0}.items():
        monkeypatch.setattr(roofline, name, value)
    threads_before = torch.get_num_threads()
    rate = roofline._gflops(roofline._torch_product, "bf16", threads_before + 1)
    assert torch.get_num_threads() == threads_before
    assert rate > 0


def test_a_rate_that_is_not_known_is_neither_the_higher_one_nor_a_bound() -> None:
    unknown = Roofline(gemm_gflops={"fp32": {"1": None}, "int8": {"1": 60.0}}, copy_gb_per_s=11.0)
    assert unknown.best_of(KNOWN).gemm_gflops == KNOWN.gemm_gflops | {"int8": {"1": 60.0}}
    assert unknown.best_of(unknown).gemm_gflops == unknown.gemm_gflops
    assert unknown.percent_of_roofline(macs=1, num_bytes=1, precision="fp32", threads=1, latency_ms=1.0) is None


def test_a_slow_machine_is_measured_with_the_small_product_only(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = []

    def product(_precision: str, side: int, _threads: int) -> roofline.Call:
        sides.append(side)
        return lambda: None

    monkeypatch.setattr(roofline, "_best_seconds", lambda _call, _budget=0.0: 1.0)
    assert roofline._gflops(product, "fp32", 1) == pytest.approx(2 * roofline.TRIAL_SIDE**3 / 1e9)
    assert sides == [roofline.TRIAL_SIDE]
