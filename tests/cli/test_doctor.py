"""`edgeembed doctor`, and how `embed` and `search` use its measurements."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeembed.cli.doctor import replacement_text
from edgeembed.device.bundle import read_bundle
from edgeembed.device.checksummed_json import write_checksummed
from edgeembed.device.embedder import Embedder
from edgeembed.device.runtimes import available_cores, fastest_cache
from tests.conftest import Outcome
from tests.device.conftest import pattern
from tests.device.runtimes.conftest import hurried, make_bundle

Run = Callable[..., Outcome]
MakeBundle = Callable[..., Path]

__all__ = ["hurried", "make_bundle"]  # fixtures
PAIRS = [("model.fp32.onnx", "onnxruntime"), ("model.fp32.onnx", "openvino"), ("model.int8.onnx", "onnxruntime")]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pattern(0).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.usefixtures("hurried")
def test_doctor_measures_verified_pairs_and_embed_uses_the_fastest(
    edgeembed: Run, make_bundle: MakeBundle, photo: Path, tmp_path: Path
) -> None:
    folder = make_bundle()
    outcome = edgeembed("doctor", folder, "--json")
    assert outcome.code == 0, outcome.stderr
    (measured,) = json.loads(outcome.stdout)["fastest"]
    assert (measured["bundle"], measured["threads"]) == ("tiny", available_cores())
    assert [(row["file"], row["runtime"]) for row in measured["timed"]] == PAIRS
    (chosen,) = [row for row in measured["timed"] if row["chosen"]]
    assert chosen["p50_ms"] == min(row["p50_ms"] for row in measured["timed"])
    embedded = edgeembed("embed", photo, "--model", folder, "--out", tmp_path / "e.npy", "--json")
    value = json.loads(embedded.stdout)
    assert (f"model.{value['precision']}.onnx", value["runtime"]) == (chosen["file"], chosen["runtime"])
    assert value["provider"] == chosen["provider"]


@pytest.mark.usefixtures("hurried")
def test_doctor_prints_a_table_for_each_bundle(edgeembed: Run, make_bundle: MakeBundle) -> None:
    outcome = edgeembed("doctor", make_bundle("first"), make_bundle("second", verdicts={}), "--threads", 1)
    assert outcome.code == 0, outcome.stderr
    first, second = outcome.stdout.split("\n\n")[1:]
    lines = [line.split() for line in first.splitlines()]
    assert lines[0] == ["first,", "batch", "1,", "1", "thread:"]
    assert lines[1] == ["file", "runtime", "provider", "p50_ms", "cosine_p1", "chosen"]
    assert [(line[0], line[1]) for line in lines[2:]] == PAIRS
    assert sum(line[-1] == "*" for line in lines[2:]) == 1
    assert [line.split()[1] for line in second.splitlines()[2:]] == ["onnxruntime", "onnxruntime"]


@pytest.mark.usefixtures("hurried")
def test_doctor_names_the_files_whose_loss_is_not_shown(edgeembed: Run, make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    value = json.loads((folder / "bundle.json").read_text())
    del value["seal"]
    loss = {"value": 0.0, "ci95": [-0.01, 0.01], "limit": 0.005, "shown": False, "matched_queries": 16, "classes": 8}
    for file in value["files"]:
        if file["precision"] == "int8":
            file["retrieval"] = {"map_loss": {**loss, "queries_needed": 300}}
    write_checksummed(folder / "bundle.json", value)
    message = (
        "not shown: 16 matched queries of 8 classes, about 300 needed if it loses nothing: mAP is 0.00 points "
        "[-1.00, 1.00] below fp32's"
    )
    assert f"model.int8.onnx in onnxruntime: {message}, 0.5 allowed" in edgeembed("doctor", folder).stdout
    rows = json.loads(edgeembed("doctor", folder, "--json").stdout)["fastest"][0]["timed"]
    assert [row["not_shown"] is None for row in rows if row["runtime"] == "onnxruntime"] == [True, False]


@pytest.mark.usefixtures("hurried")
def test_doctor_measures_the_bundled_model_unless_no_measure_is_given(edgeembed: Run) -> None:
    measured = json.loads(edgeembed("doctor", "--json").stdout)["fastest"]
    assert {row["runtime"] for row in measured[0]["timed"]} >= {"onnxruntime"}
    assert fastest_cache.cache_file().is_file()
    fastest_cache.cache_file().unlink()
    outcome = edgeembed("doctor", "--no-measure")
    assert "p50_ms" not in outcome.stdout
    assert "fastest" not in json.loads(edgeembed("doctor", "--no-measure", "--json").stdout)
    assert not fastest_cache.cache_file().exists()


def test_doctor_measures_no_file_whose_checksum_is_wrong(edgeembed: Run, make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    content = bytearray((folder / "model.int8.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "model.int8.onnx").write_bytes(content)
    outcome = edgeembed("doctor", folder)
    assert outcome.code == 1
    assert "model.int8.onnx: sha256 is" in outcome.stderr
    missing = edgeembed("doctor", folder / "nowhere")
    assert missing.code == 2
    assert "nowhere: not a bundle (no such file or folder)" in missing.stderr
    assert not fastest_cache.cache_file().exists()


def test_embed_and_search_run_in_the_runtime_always(
    edgeembed: Run, make_bundle: MakeBundle, photo: Path, tmp_path: Path
) -> None:
    folder, out = make_bundle(), tmp_path / "e.safetensors"
    options = ["--model", folder, "--runtime", "openvino", "--provider", "cpu", "--json"]
    embedded = json.loads(edgeembed("embed", photo, "--out", out, *options).stdout)
    assert (embedded["precision"], embedded["runtime"], embedded["provider"]) == ("fp32", "openvino", "CPU")
    found = json.loads(edgeembed("search", photo, "--index", out, *options).stdout)
    assert (found["runtime"], found["provider"]) == ("openvino", "CPU")
    assert found["queries"][0]["results"][0]["similarity"] > 0.999


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--runtime", "openvin"], 2, "did you mean 'openvino'"),
        (["--provider", "nothing"], 2, "unknown provider 'nothing'"),
        (["--runtime", "openvino", "--provider", "nothing"], 2, "unknown provider 'nothing'"),
    ],
)
def test_a_runtime_or_provider_that_is_not_here_is_one_line(
    edgeembed: Run, make_bundle: MakeBundle, photo: Path, options: list[str], code: int, message: str
) -> None:
    outcome = edgeembed("embed", photo, "--model", make_bundle(), *options)
    assert outcome.code == code
    assert message in outcome.stderr.strip().splitlines()[-1]
    assert "Traceback" not in outcome.stderr


def test_without_openvino_the_extra_to_install_is_named(
    edgeembed: Run, make_bundle: MakeBundle, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "edgeembed.device.runtimes.openvino", raising=False)
    monkeypatch.setattr(fastest_cache, "is_installed", lambda runtime: runtime != "openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    outcome = edgeembed("embed", photo, "--model", make_bundle(), "--runtime", "openvino")
    assert outcome.code == 2
    assert "pip install '.[openvino]'" in outcome.stderr.strip().splitlines()[-1]
    assert Embedder().runtime == "onnxruntime"


@pytest.mark.usefixtures("hurried")
def test_doctor_prints_what_it_refuses_with_figure_and_reason(edgeembed: Run, make_bundle: MakeBundle) -> None:
    folder = make_bundle(differs=True)
    outcome = edgeembed("doctor", folder)
    assert outcome.code == 0, outcome.stderr
    (message,) = [line for line in outcome.stdout.splitlines() if line.startswith("not used by default: ")]
    assert message.startswith(
        "not used by default: model.int8.onnx in onnxruntime: cosine p1 to the fp32 file's embeddings"
    )
    (measured,) = json.loads(edgeembed("doctor", folder, "--json").stdout)["fastest"]
    refused = [row for row in measured["timed"] if row["refused"] is not None]
    assert [(row["file"], row["chosen"]) for row in refused] == [("model.int8.onnx", False)]
    assert refused[0]["cosine_p1"] < 0.99
    assert measured["images"] == 64
    assert Embedder(folder).precision == "fp32"


@pytest.mark.usefixtures("hurried", "without_int8_dot_products")
def test_doctor_refuses_8_bit_weights_on_a_cpu_without_int8_dot_products(
    edgeembed: Run, make_bundle: MakeBundle
) -> None:
    folder = make_bundle(reduce_range=False)
    outcome = edgeembed("doctor", folder)
    assert "model.int8.onnx in onnxruntime: its 8-bit weights need int8 dot products" in outcome.stdout
    assert Embedder(folder).precision == "fp32"


@pytest.mark.usefixtures("hurried")
def test_doctor_compares_on_the_users_own_images(edgeembed: Run, make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder, images = make_bundle(), tmp_path / "images"
    images.mkdir()
    empty = edgeembed("doctor", folder, "--images", images)
    assert (empty.code, empty.stderr) == (2, f"error: --images {images}: holds 0 images, expected at least 16\n")
    unused = edgeembed("doctor", folder, "--images", images, "--no-measure")
    assert unused.code == 2
    assert "--images: files are compared only when they are measured: leave out --no-measure" in unused.stderr
    for seed in range(16):
        pattern(seed).save(images / f"{seed}.png")
    (measured,) = json.loads(edgeembed("doctor", folder, "--images", images, "--json").stdout)["fastest"]
    assert measured["images"] == 16
    assert sum(row["chosen"] for row in measured["timed"]) == 1
    (images / "0.png").write_bytes(b"no image")
    outcome = edgeembed("doctor", folder, "--images", images)
    assert outcome.code == 2
    assert "--images: 15 of 16 can be decoded, expected at least 16" in outcome.stderr
    assert "no such folder" in edgeembed("doctor", folder, "--images", tmp_path / "nowhere").stderr
    assert "is a file, expected a folder" in edgeembed("doctor", folder, "--images", images / "1.png").stderr
    assert fastest_cache.load_fastest(folder, read_bundle(folder)) is not None  # what was remembered holds


@pytest.mark.parametrize(
    ("p50_ms", "message"), [(1.0, "; model.fp32.onnx in onnxruntime is used instead"), (3.0, ""), (2.0, "")]
)
def test_the_replacement_of_a_faster_refused_file_is_named(p50_ms: float, message: str) -> None:
    chosen = {"file": "model.fp32.onnx", "runtime": "onnxruntime", "p50_ms": 2.0, "chosen": True}
    refused = {"file": "model.int8.onnx", "runtime": "onnxruntime", "p50_ms": p50_ms, "chosen": False}
    assert replacement_text(refused, {"timed": [chosen, refused]}) == message
    assert replacement_text(refused, {"timed": [refused]}) == ""


def test_doctor_lists_models_whose_weights_are_installed(edgeembed: Run) -> None:
    from edgeembed.network.weight_packages import models_with_weights

    described = json.loads(edgeembed("doctor", "--no-measure", "--json").stdout)
    assert described["weight_packages"] == models_with_weights()
    last = edgeembed("doctor", "--no-measure").stdout.splitlines()[-1]
    models = ", ".join(models_with_weights()) or "none; pip install '.[weights]' in a clone installs some"
    assert last == f"pretrained weights from packages: {models}"
