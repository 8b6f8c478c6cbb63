"""Which pair of file and runtime is fastest: who takes part, what is remembered, and when that is not believed."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeembed import files
from edgeembed.device.bundle import read_bundle
from edgeembed.device.embedder import Embedder, choose_runnable_file, log_not_measured
from edgeembed.device.runtimes import fastest_cache
from edgeembed.device.runtimes.fastest_cache import (
    MIN_COSINE_P1,
    MIN_IMAGES,
    Agreement,
    Measurement,
    agree,
    load_fastest,
    measure_runnable_files,
    rejection_reason,
    verified_runnable_files,
)
from edgeembed.errors import CheckFailed, UserError
from tests.device.conftest import SIZE_PX
from tests.device.runtimes.conftest import say_quantised, say_verified

MakeBundle = Callable[..., Path]

IMAGES = np.random.default_rng(0).integers(0, 256, (MIN_IMAGES, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
RIGHT = Agreement(cosine_p1=0.999, images=MIN_IMAGES)
WRONG = Agreement(cosine_p1=0.9899, images=MIN_IMAGES)


def measured_as(path: str, runtime: str, provider: str, p50_ms: float) -> Measurement:
    return Measurement(path=path, runtime=runtime, provider=provider, p50_ms=p50_ms, agreement=RIGHT)


OWN_FP32 = measured_as("model.fp32.onnx", "onnxruntime", "CPUExecutionProvider", 2.0)
OWN_INT8 = measured_as("model.int8.onnx", "onnxruntime", "CPUExecutionProvider", 1.5)
OTHER_FP32 = measured_as("model.fp32.onnx", "openvino", "CPU", 1.0)


def store_fastest(folder: Path, measured: list[Measurement], **options: Any) -> Measurement | None:
    return fastest_cache.store_fastest(folder, read_bundle(folder), measured, **options)


def recalled(folder: Path, **options: Any) -> tuple[str, str] | None:
    pair = load_fastest(folder, read_bundle(folder), **options)
    return None if pair is None else (pair.file.path, pair.runtime)


def test_a_file_takes_part_in_its_own_runtime_and_where_it_passed(make_bundle: MakeBundle) -> None:
    pairs = verified_runnable_files(read_bundle(make_bundle()))
    assert [(pair.file.path, pair.runtime) for pair in pairs] == [
        ("model.fp32.onnx", "onnxruntime"),
        ("model.fp32.onnx", "openvino"),
        ("model.int8.onnx", "onnxruntime"),
    ]


def test_a_runtime_that_is_not_installed_takes_no_part(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastest_cache, "is_installed", lambda runtime: runtime == "onnxruntime")
    assert {pair.runtime for pair in verified_runnable_files(read_bundle(make_bundle()))} == {"onnxruntime"}


@pytest.mark.usefixtures("hurried")
def test_every_verified_pair_is_timed_and_the_fastest_remembered(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    timed = measure_runnable_files(folder, read_bundle(folder), IMAGES)
    assert [(one.path, one.runtime, one.provider) for one in timed] == [
        ("model.fp32.onnx", "onnxruntime", "CPUExecutionProvider"),
        ("model.fp32.onnx", "openvino", "CPU"),
        ("model.int8.onnx", "onnxruntime", "CPUExecutionProvider"),
    ]
    assert all(one.p50_ms > 0 for one in timed)
    assert [one.agreement.images for one in timed] == [MIN_IMAGES] * 3
    assert [one.agreement.cosine_p1 for one in timed] == pytest.approx([1.0] * 3)
    best = store_fastest(folder, timed)
    assert best is not None
    assert best.p50_ms == min(one.p50_ms for one in timed)
    assert recalled(folder) == (best.path, best.runtime)
    (value,) = json.loads(fastest_cache.cache_file().read_text()).values()
    assert [one["p50_ms"] for one in value["measured"]] == [one.p50_ms for one in timed]
    assert value["fastest"]["cosine_p1"] == best.agreement.cosine_p1


@pytest.mark.usefixtures("hurried")
def test_a_file_that_cannot_be_opened_is_left_out_with_a_warning(
    make_bundle: MakeBundle, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_bundle()
    (folder / "model.fp32.onnx").write_bytes(b"no network")
    (left,) = measure_runnable_files(folder, read_bundle(folder), IMAGES)
    assert (left.path, left.agreement.cosine_p1) == ("model.int8.onnx", None)
    assert "not measured: model.fp32.onnx in openvino: " in caplog.text
    assert store_fastest(folder, [left]) is None
    (folder / "model.int8.onnx").write_bytes(b"no network")
    with pytest.raises(CheckFailed, match="no file can be opened"):
        measure_runnable_files(folder, read_bundle(folder), IMAGES)


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[1]", b"{}", b'{"a": 1}', None])
def test_a_damaged_cache_is_no_cache_and_is_written_anew(make_bundle: MakeBundle, content: bytes | None) -> None:
    folder = make_bundle()
    if content is None:
        store_fastest(folder, [OWN_FP32])
        damaged = {key: {"fastest": ["model.fp32.onnx"]} for key in json.loads(fastest_cache.cache_file().read_text())}
        content = json.dumps(damaged).encode()
    fastest_cache.cache_file().write_bytes(content)
    assert recalled(folder) is None
    Embedder(folder)
    store_fastest(folder, [OWN_FP32, OTHER_FP32])
    assert recalled(folder) == ("model.fp32.onnx", "openvino")


@pytest.mark.parametrize(
    "other",
    [
        {"cpu": "another"},
        {"cores": 1000},
        {"cpu_flags": ("amx_int8",)},
        {"architecture": "riscv64"},
    ],
)
def test_another_machine_is_not_believed(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    folder = make_bundle()
    store_fastest(folder, [OTHER_FP32], threads=1)
    assert recalled(folder, threads=1) is not None
    machine = fastest_cache.this_machine()
    monkeypatch.setattr(fastest_cache, "this_machine", lambda: dataclasses.replace(machine, **other))
    assert recalled(folder, threads=1) is None


def test_other_versions_threads_and_bundles_are_measured_again(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bundle()
    store_fastest(folder, [OTHER_FP32], threads=1)
    assert recalled(folder, threads=64) is None
    assert recalled(make_bundle("second"), threads=1) is None
    say_verified(folder, {"model.int8.onnx": True})
    assert recalled(folder, threads=1) is None
    store_fastest(folder, [OTHER_FP32], threads=1)
    monkeypatch.setattr(fastest_cache, "runtime_versions", lambda: {"onnxruntime": "0"})
    assert recalled(folder, threads=1) is None


def test_only_verified_pairs_are_believed(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    store_fastest(folder, [OWN_FP32])
    (key,) = json.loads(fastest_cache.cache_file().read_text())
    for path, runtime in (("../other.onnx", "onnxruntime"), ("model.int8.onnx", "openvino"), ("x", "torch")):
        entry = {"path": path, "runtime": runtime, "cosine_p1": 1.0, "images": MIN_IMAGES, "relative_error_p50": 0.0}
        fastest_cache.cache_file().write_text(json.dumps({key: {"fastest": entry}}))
        assert recalled(folder) is None


def test_the_cache_is_the_users_and_does_not_grow_without_end(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bundle()
    monkeypatch.setattr(fastest_cache, "cache_folder", files.cache_folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(fastest_cache, "MAX_ENTRIES", 3)
    for threads in range(1, 6):
        store_fastest(folder, [OWN_FP32], threads=threads)
    assert [path.name for path in (tmp_path / "xdg" / "edgeembed").iterdir()] == ["fastest.json"]
    assert [threads for threads in range(1, 6) if recalled(folder, threads=threads)] == [3, 4, 5]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fastest_cache.cache_file() == tmp_path / ".cache" / "edgeembed" / "fastest.json"


def test_a_cache_that_cannot_be_written_is_a_warning(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(fastest_cache, "cache_folder", lambda: tmp_path / "file")
    assert store_fastest(make_bundle(), [OWN_FP32]) == OWN_FP32
    assert "cannot be stored" in caplog.text
    assert Embedder(tmp_path / "tiny").runtime == "onnxruntime"


@pytest.mark.usefixtures("with_int8_dot_products")
def test_the_embedder_opens_what_was_always_else_what_is_remembered_else_fp32(
    make_bundle: MakeBundle, caplog: pytest.LogCaptureFixture
) -> None:
    def opened(**options: Any) -> tuple[str, str]:
        one = Embedder(folder, **options)
        return one.precision, one.runtime

    folder = make_bundle()
    assert opened() == ("fp32", "onnxruntime")
    store_fastest(folder, [OWN_FP32, OWN_INT8])
    assert opened() == ("int8", "onnxruntime")
    store_fastest(folder, [OWN_FP32, OWN_INT8, OTHER_FP32])
    assert opened() == ("fp32", "openvino")
    assert Embedder(folder).provider == "CPU"
    assert opened(precision="int8") == ("int8", "onnxruntime")
    assert opened(runtime="onnxruntime") == ("fp32", "onnxruntime")
    assert opened(provider="cpu") == ("fp32", "onnxruntime")
    assert choose_runnable_file(read_bundle(folder), None, None, "cuda").file.precision == "fp32"
    assert not caplog.records
    assert opened(runtime="openvino") == ("fp32", "openvino")  # the one that was verified there
    assert not caplog.records
    assert opened(runtime="openvino", precision="int8") == ("int8", "openvino")
    assert "model.int8.onnx was not verified in openvino" in caplog.text


def test_a_remembered_runtime_that_cannot_be_imported_any_more_gives_way(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_bundle()
    store_fastest(folder, [OTHER_FP32])
    monkeypatch.delitem(sys.modules, "edgeembed.device.runtimes.openvino", raising=False)
    monkeypatch.setattr(fastest_cache, "is_installed", lambda _runtime: True)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert Embedder(folder).runtime == "onnxruntime"
    assert "openvino, the fastest here, can no longer be imported" in caplog.text
    caplog.clear()
    monkeypatch.setattr(fastest_cache, "is_installed", lambda runtime: runtime != "openvino")
    assert Embedder(folder).runtime == "onnxruntime"
    assert not caplog.records


def test_one_rule_says_what_may_become_the_default(make_bundle: MakeBundle) -> None:
    fp32, int8 = read_bundle(make_bundle()).files
    for file in (fp32, int8):
        assert rejection_reason(file, RIGHT) is None
        assert rejection_reason(file, Agreement(cosine_p1=MIN_COSINE_P1, images=MIN_IMAGES)) is None
        for cosine_p1, images, told in (
            (0.98994, MIN_IMAGES, r"cosine p1 .* is 0\.9899, below 0\.99"),
            (float("nan"), MIN_IMAGES, "is nan, below"),
            (1.0, MIN_IMAGES - 1, "compared on 15 images only, expected at least 16"),
            (None, MIN_IMAGES, "no embeddings of an fp32 file"),
        ):
            with pytest.raises(AssertionError, match=told):
                raise AssertionError(rejection_reason(file, Agreement(cosine_p1=cosine_p1, images=images)))
        assert rejection_reason(file, Agreement(cosine_p1=None, images=MIN_IMAGES, defect="is broken")) == "is broken"


def test_vectors_that_are_not_of_unit_length_agree_with_nothing() -> None:
    unit_ND = np.eye(20, 64, dtype=np.float32)
    assert agree(unit_ND, unit_ND) == Agreement(cosine_p1=1.0, images=20, relative_error_p50=0.0)
    for broken_ND, defect in (
        (2 * unit_ND, "gives vectors of length 2.0000, expected 1"),
        (unit_ND * np.nan, "gives vectors of length nan, expected 1"),
        (unit_ND[:, :32], "gives an output of shape (20, 32), expected (20, 64)"),
    ):
        assert agree(unit_ND, broken_ND) == Agreement(cosine_p1=None, images=20, defect=defect)
    assert agree(None, unit_ND) == Agreement(cosine_p1=None, images=20)


@pytest.mark.parametrize(("error", "is_refused"), [(0.067, True), (0.0401, True), (0.04, False), (0.002, False)])
def test_a_high_cosine_is_refused_where_the_images_themselves_lie_close_together(
    make_bundle: MakeBundle, error: float, is_refused: bool
) -> None:
    """Median cosine .998 of a space of mean cosine .97: an error of .067 of the distance between images."""
    folder = make_bundle()
    agreement = dataclasses.replace(RIGHT, relative_error_p50=error)
    reason = rejection_reason(read_bundle(folder).files[1], agreement)
    assert (reason is not None and "of the mean distance between images" in reason) == is_refused
    int8 = dataclasses.replace(OWN_INT8, p50_ms=0.1, agreement=agreement)
    assert store_fastest(folder, [OWN_FP32, int8]) == (OWN_FP32 if is_refused else int8)
    assert recalled(folder) == ((OWN_FP32 if is_refused else int8).path, "onnxruntime")


def test_a_pair_that_disagrees_is_never_remembered_however_fast(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    wrong = dataclasses.replace(OWN_INT8, p50_ms=0.1, agreement=WRONG)
    assert store_fastest(folder, [OWN_FP32, wrong]) == OWN_FP32
    assert recalled(folder) == ("model.fp32.onnx", "onnxruntime")
    assert store_fastest(folder, [wrong]) is None
    assert recalled(folder) is None
    assert Embedder(folder).precision == "fp32"


@pytest.mark.usefixtures("hurried")
def test_images_that_are_too_few_to_tell_leave_what_is_remembered(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    store_fastest(folder, [OWN_INT8])
    few = dataclasses.replace(OWN_FP32, p50_ms=0.1, agreement=Agreement(cosine_p1=1.0, images=8))
    assert store_fastest(folder, [few]) is None
    assert recalled(folder) == (OWN_INT8.path, OWN_INT8.runtime)


def test_another_network_in_the_int8_file_is_measured_and_not_remembered(make_bundle: MakeBundle) -> None:
    folder = make_bundle(differs=True, verdicts={})
    manifest = read_bundle(folder)
    fp32, int8 = measure_runnable_files(folder, manifest, IMAGES)
    assert int8.agreement.cosine_p1 is not None
    assert int8.agreement.cosine_p1 < 0.9
    assert store_fastest(folder, [dataclasses.replace(fp32, p50_ms=9.0), int8]) is not None
    assert recalled(folder) == ("model.fp32.onnx", "onnxruntime")


@pytest.mark.parametrize("lacking", [("cosine_p1", "images"), ("relative_error_p50",)])
def test_what_was_remembered_without_a_comparison_is_ignored(make_bundle: MakeBundle, lacking: tuple[str, ...]) -> None:
    folder = make_bundle()
    store_fastest(folder, [OWN_INT8])
    known = json.loads(fastest_cache.cache_file().read_text())
    for entry in known.values():
        for key in lacking:
            del entry["fastest"][key]
    fastest_cache.cache_file().write_text(json.dumps(known))
    assert recalled(folder) is None


@pytest.mark.parametrize("quantisation", [None, {}, {"reduce_range": False}, {"cpus": "int8 dot products"}])
def test_8_bit_weights_are_never_the_default_without_int8_dot_products(
    make_bundle: MakeBundle, quantisation: dict[str, Any] | None, request: pytest.FixtureRequest
) -> None:
    folder = make_bundle()
    say_quantised(folder, quantisation)
    request.getfixturevalue("with_int8_dot_products")
    assert store_fastest(folder, [OWN_FP32, OWN_INT8]) == OWN_INT8
    assert Embedder(folder).precision == "int8"
    request.getfixturevalue("without_int8_dot_products")
    assert Embedder(folder).precision == "fp32"
    assert store_fastest(folder, [OWN_FP32, OWN_INT8]) == OWN_FP32
    told = rejection_reason(read_bundle(folder).files[1], RIGHT)
    assert told is not None
    assert "8-bit weights need int8 dot products, which this CPU is not known to have" in told


@pytest.mark.usefixtures("without_int8_dot_products")
def test_7_bit_weights_may_be_the_default_on_every_cpu(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    assert store_fastest(folder, [OWN_FP32, OWN_INT8]) == OWN_INT8
    assert Embedder(folder).precision == "int8"


@pytest.mark.parametrize("quantisation", [None, {"reduce_range": False}, {"reduce_range": True}])
def test_8_bit_weights_always_without_int8_dot_products_are_a_warning(
    make_bundle: MakeBundle,
    quantisation: dict[str, Any] | None,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = make_bundle(verdicts={"model.int8.onnx": True})
    say_quantised(folder, quantisation)
    request.getfixturevalue("with_int8_dot_products")
    Embedder(folder, precision="int8")
    assert not caplog.records
    request.getfixturevalue("without_int8_dot_products")
    for runtime in (None, "onnxruntime", "openvino"):
        caplog.clear()
        assert Embedder(folder, precision="int8", runtime=runtime).precision == "int8"
        is_right = quantisation is not None and quantisation["reduce_range"]
        assert ("use precision fp32, or export the run again" in caplog.text) is not is_right
    assert Embedder(folder, runtime="openvino").precision == ("int8" if is_right else "fp32")
    caplog.clear()
    assert choose_runnable_file(read_bundle(folder), "int8", None, "cuda").file.precision == "int8"
    assert not caplog.records


def test_without_fp32_the_first_file_that_is_right_for_this_cpu_is_opened(
    make_bundle: MakeBundle, request: pytest.FixtureRequest
) -> None:
    folder = make_bundle()
    manifest = read_bundle(folder)
    int8 = manifest.files[1]
    fp16 = int8.model_copy(update={"precision": "fp16", "path": "model.fp16.onnx"})
    full = int8.model_copy(update={"quantisation": None})

    def chosen(*files: Any) -> str:
        return choose_runnable_file(manifest.model_copy(update={"files": files}), None, None, None).file.precision

    request.getfixturevalue("without_int8_dot_products")
    assert chosen(full, fp16) == "fp16"
    assert chosen(int8, fp16) == "int8"
    with pytest.raises(UserError, match="holds only int8 files with 8-bit weights"):
        chosen(full)
    request.getfixturevalue("with_int8_dot_products")
    assert chosen(full, fp16) == "int8"


def test_what_was_not_measured_here_is_told_once(make_bundle: MakeBundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_not_measured.cache_clear()
    folder = make_bundle()
    for _ in range(2):
        assert Embedder(folder).precision == "fp32"
    assert caplog.text.count("`edgeembed doctor` measures whether a faster file is right here") == 1
    caplog.clear()
    log_not_measured.cache_clear()
    Embedder(folder, precision="fp32")
    store_fastest(folder, [OWN_FP32])
    Embedder(folder)
    assert "edgeembed doctor" not in caplog.text
