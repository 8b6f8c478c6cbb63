"""The device runtime: what it takes, what it refuses, and that the same image always gives the same vector."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeembed.device import embedder as embedder_module
from edgeembed.device import runtimes
from edgeembed.device.bundle import read_bundle
from edgeembed.device.embedder import DEFAULT_ARTIFACT, Embedder, bundled_artifacts, embed_images
from edgeembed.device.images import ImageError
from edgeembed.device.runtimes import has_int8_dot_product, open_session
from edgeembed.errors import CheckFailed, UserError
from tests.device.conftest import DIM, SIZE_PX, pattern, tiny_network, write_manifest

MakeBundle = Callable[..., Path]
ODD = ("colour.jpg", "rotated.jpg", "grey.jpg", "cmyk.jpg", "palette.png", "alpha.png")
BAD = ("corrupt.jpg", "truncated.jpg", "empty.png")


@pytest.fixture(scope="module")
def embedder(bundle: Path) -> Embedder:
    return Embedder(bundle)


@pytest.mark.parametrize("name", ODD)
def test_every_kind_of_image_gives_a_unit_vector(embedder: Embedder, photos: Path, name: str) -> None:
    embedding_ND = embedder.embed([photos / "odd" / name])
    assert embedding_ND.shape == (1, DIM)
    assert embedding_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embedding_ND, axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("name", ["rotated.jpg", "cmyk.jpg", "palette.png"])
def test_the_same_picture_is_the_same_however_it_was_saved(embedder: Embedder, photos: Path, name: str) -> None:
    upright, other = embedder.embed([photos / "photo0.png", photos / "odd" / name])
    assert upright @ other > 0.99


def test_transparency_is_laid_on_white(embedder: Embedder, photos: Path) -> None:
    with Image.open(photos / "odd" / "alpha.png") as image:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
    np.testing.assert_array_equal(
        embedder.embed([photos / "odd" / "alpha.png"]), embedder.embed([white.convert("RGB")])
    )


def test_a_batch_gives_what_single_images_give(embedder: Embedder, photos: Path) -> None:
    files = [photos / "odd" / name for name in ODD] + sorted(photos.glob("*.png"))
    single = np.concatenate([embedder.embed([file]) for file in files])
    for batch_size in (1, 5, len(files), 100):
        np.testing.assert_allclose(embedder.embed(files, batch_size=batch_size), single, atol=1e-6)


def test_many_images_keep_their_order(embedder: Embedder) -> None:
    images = [pattern(seed) for seed in range(60)]
    pixels = np.stack([np.asarray(image.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)) for image in images])
    np.testing.assert_allclose(embedder.embed(images, batch_size=7), embedder.embed_pixels(pixels), atol=1e-6)


def test_one_path_or_picture_is_a_batch_of_one(embedder: Embedder, photos: Path) -> None:
    file = photos / "photo1.png"
    with Image.open(file) as image:
        image.load()
    expected = embedder.embed([file])
    for one in (file, str(file), image):
        np.testing.assert_array_equal(embedder.embed(one), expected)


def test_no_images_give_no_rows(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, DIM)
    assert embedder.embed_pixels(np.empty((0, SIZE_PX, SIZE_PX, 3), np.uint8)).shape == (0, DIM)


@pytest.mark.parametrize("name", BAD)
def test_an_image_that_cannot_be_decoded_is_named(embedder: Embedder, photos: Path, name: str) -> None:
    with pytest.raises(ImageError, match=name):
        embedder.embed([photos / "photo0.png", photos / "bad" / name])


def test_embed_files_names_and_leaves_out_what_cannot_be_decoded(embedder: Embedder, photos: Path) -> None:
    good = sorted(photos.glob("*.png"))
    files = [photos / "bad" / "corrupt.jpg", *good, photos / "bad" / "truncated.jpg", photos / "absent.png"]
    skipped: list[str] = []
    progress: list[int] = []
    embedding_MD, kept_M = embed_images(
        embedder, files, batch_size=4, on_skip=skipped.append, on_progress=progress.append
    )
    assert kept_M.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(embedding_MD, embedder.embed(good), atol=1e-6)
    assert [Path(reason.split(":")[0]).name for reason in skipped] == ["corrupt.jpg", "truncated.jpg", "absent.png"]
    assert progress == list(range(1, len(files) + 1))


def test_files_that_all_fail_give_no_rows(embedder: Embedder, photos: Path) -> None:
    skipped: list[str] = []
    embedding_MD, kept_M = embed_images(embedder, [photos / "bad" / name for name in BAD], on_skip=skipped.append)
    assert embedding_MD.shape == (0, DIM)
    assert kept_M.size == 0
    assert len(skipped) == len(BAD)


def test_decoding_in_threads_leaves_the_warning_filters_as_they_were(embedder: Embedder, photos: Path) -> None:
    before = list(warnings.filters)
    embed_images(embedder, sorted(photos.rglob("*.*")) * 5, on_skip=str)
    assert list(warnings.filters) == before


@pytest.mark.parametrize(
    ("pixels", "found"),
    [
        (np.zeros((1, SIZE_PX, SIZE_PX, 3), np.float32), "float32"),
        (np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8), "(32, 32, 3)"),
        (np.zeros((1, 3, SIZE_PX, SIZE_PX), np.uint8), "(1, 3, 32, 32)"),
        (np.zeros((1, 24, SIZE_PX, 3), np.uint8), "(1, 24, 32, 3)"),
        ([[1]], "list"),
    ],
)
def test_wrong_pixels_are_refused_with_what_came_and_what_is_expected(
    embedder: Embedder, pixels: Any, found: str
) -> None:
    with pytest.raises(UserError) as caught:
        embedder.embed_pixels(pixels)
    assert found in str(caught.value)
    assert "uint8 array (N, 32, 32, 3)" in str(caught.value)


def test_pixels_need_not_be_contiguous(embedder: Embedder) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (2, SIZE_PX, 2 * SIZE_PX, 3), dtype=np.uint8)
    half = wide[:, :, ::2]
    np.testing.assert_array_equal(embedder.embed_pixels(half), embedder.embed_pixels(half.copy()))


def test_a_batch_size_below_one_is_refused(embedder: Embedder) -> None:
    with pytest.raises(UserError, match="batch_size is 0"):
        embed_images(embedder, [], batch_size=0, on_skip=print)


def test_the_attributes_say_what_was_opened(bundle: Path) -> None:
    opened = Embedder(str(bundle), threads=1)
    assert (opened.name, opened.space_id, opened.dim) == ("tiny", "space-a", DIM)
    assert (opened.height, opened.width, opened.precision) == (SIZE_PX, SIZE_PX, "fp32")
    assert (opened.runtime, opened.provider, opened.threads) == ("onnxruntime", "CPUExecutionProvider", 1)


@pytest.mark.parametrize("cpu", ["with_int8_dot_products", "without_int8_dot_products"])
def test_fp32_is_chosen_where_nothing_was_measured(
    make_bundle: MakeBundle, cpu: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(cpu)
    opened = Embedder(make_bundle())
    assert (opened.precision, opened.runtime) == ("fp32", "onnxruntime")


@pytest.mark.parametrize(
    ("architecture", "system", "flags", "expected"),
    [
        ("x86_64", "Linux-6.1", ["avx2", "avx512f", "avx512_vnni"], True),
        ("x86_64", "Linux-6.1", ["avx2", "avx_vnni"], True),
        ("x86_64", "Linux-6.1", ["amx_int8"], True),
        ("x86_64", "Linux-6.1", ["avx2", "avx512f"], False),
        ("aarch64", "Linux-6.1", ["asimd", "asimddp"], True),
        ("aarch64", "Linux-6.1", ["asimd"], False),
        ("arm64", "macOS-14.0-arm64", [], True),
        ("AMD64", "Windows-11", [], False),
    ],
)
def test_int8_dot_products_are_known_by_cpu_flags(
    monkeypatch: pytest.MonkeyPatch, architecture: str, system: str, flags: list[str], expected: bool
) -> None:
    machine = dataclasses.replace(
        runtimes.this_machine(), architecture=architecture, system=system, cpu_flags=tuple(flags)
    )
    monkeypatch.setattr(runtimes, "this_machine", lambda: machine)
    assert has_int8_dot_product() is expected


def test_a_precision_that_the_bundle_lacks_is_refused_with_those_it_has(bundle: Path) -> None:
    with pytest.raises(UserError, match="no precision 'fp16', it holds fp32"):
        Embedder(bundle, precision="fp16")


def test_a_changed_byte_is_found_before_anything_is_parsed(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bundle()
    file = folder / "model.fp32.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(
        embedder_module, "open_runnable_file", lambda *_, **__: pytest.fail("parsed an unverified file")
    )
    with pytest.raises(CheckFailed, match=r"model\.fp32\.onnx: sha256"):
        Embedder(folder, precision="fp32")


def test_weights_beside_the_network_are_verified_too(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    (folder / "model.fp32.onnx.data").write_bytes(b"weights")
    write_manifest(folder)
    Embedder(folder, precision="fp32")
    (folder / "model.fp32.onnx.data").write_bytes(b"Weights")
    with pytest.raises(CheckFailed, match=r"model\.fp32\.onnx\.data: sha256"):
        Embedder(folder, precision="fp32")


def test_the_default_is_the_bundled_model(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder_module, "ARTIFACTS", tmp_path)
    assert bundled_artifacts() == []
    with pytest.raises(UserError, match=f"{DEFAULT_ARTIFACT}: the bundled model is missing"):
        Embedder()
    folder = make_bundle(DEFAULT_ARTIFACT)
    assert bundled_artifacts() == [folder]
    assert Embedder().name == DEFAULT_ARTIFACT


def test_a_bundled_model_is_opened_by_its_name(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle("first")
    bundled = make_bundle("second")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(embedder_module, "ARTIFACTS", tmp_path)
    assert Embedder("second").bundle == bundled
    with pytest.raises(UserError, match=r"third: not a bundle \(no such file or folder\)"):
        Embedder("third")
    # A folder of the user's comes before a bundled model of the same name, and a path is never a name.
    shutil.copytree(tmp_path / "first", "second")
    assert Embedder("second").bundle == tmp_path / "elsewhere" / "second"
    with pytest.raises(UserError, match="not a bundle"):
        Embedder("./sub/first")


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a bundle \(no such file or folder\)"):
        Embedder(tmp_path / "absent")


def test_a_network_of_another_dimension_than_promised_is_refused(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    write_manifest(folder, dim=128)
    with pytest.raises(CheckFailed, match=r"onnx: gives 64 dimensions, bundle\.json says 128"):
        Embedder(folder)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tiny_network(tmp_path / "model.fp32.onnx", scale=1e37)
    write_manifest(tmp_path)
    with pytest.raises(CheckFailed, match="NaN or infinity"):
        Embedder(tmp_path).embed_pixels(np.full((1, SIZE_PX, SIZE_PX, 3), 255, np.uint8))


def test_vectors_that_are_not_of_unit_length_are_refused(tmp_path: Path) -> None:
    tiny_network(tmp_path / "model.fp32.onnx", norm=1)
    write_manifest(tmp_path)
    with pytest.raises(CheckFailed, match=r"gives vectors of length 0\.\d+, expected 1"):
        Embedder(tmp_path).embed_pixels(np.full((1, SIZE_PX, SIZE_PX, 3), 255, np.uint8))


def test_a_file_that_is_no_network_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "model.fp32.onnx").write_bytes(b"\x08\x09 no network")
    with pytest.raises(UserError, match=r"model\.fp32\.onnx: ONNX Runtime .* cannot open it"):
        open_session(tmp_path / "model.fp32.onnx")


def test_a_network_with_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    tiny_network(tmp_path / "fixed.onnx", batch=1)
    with pytest.raises(UserError, match=r"fixed\.onnx: expected one input image uint8 .* found image uint8 \(1, "):
        open_session(tmp_path / "fixed.onnx")


def test_pixels_that_the_network_cannot_take_are_a_failure_that_names_the_file(bundle: Path) -> None:
    session = open_session(bundle / "model.fp32.onnx", threads=1)
    with pytest.raises(CheckFailed, match=r"model\.fp32\.onnx: fails on pixels of shape \(1, 8, 8, 3\)"):
        session.run(np.zeros((1, 8, 8, 3), np.uint8))


def test_an_unknown_runtime_and_no_threads_are_refused(bundle: Path) -> None:
    with pytest.raises(UserError, match=r"unknown runtime 'onnx'.*did you mean 'onnxruntime'"):
        open_session(bundle / "model.fp32.onnx", runtime="onnx")
    with pytest.raises(UserError, match="threads is 0"):
        open_session(bundle / "model.fp32.onnx", threads=0)


def test_the_manifest_of_the_fixture_is_a_manifest_of_ours(bundle: Path) -> None:
    assert read_bundle(bundle).embedding.normalised


def test_embedding_imports_neither_torch_nor_pyarrow(bundle: Path, photos: Path) -> None:
    program = f"""
import sys, edgeembed
assert "numpy" not in sys.modules, "import edgeembed costs something"
edgeembed.Embedder({str(bundle)!r}).embed([{str(photos / "photo0.png")!r}, {str(photos / "odd" / "grey.jpg")!r}])
heavy = {{"torch", "pyarrow", "onnx", "openvino", "pandas", "rich", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
