"""What an embedder takes for an image, and what it refuses by name."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeembed.device.embedder import Embedder
from edgeembed.device.images import ImageError
from edgeembed.device.packing import pack
from edgeembed.errors import CheckFailed, UserError
from tests.device.conftest import DIM, SIZE_PX, pattern, tiny_network, write_manifest

MakeBundle = Callable[..., Path]


@pytest.fixture(scope="module")
def embedder(bundle: Path) -> Embedder:
    return Embedder(bundle, threads=1)


def as_bytes(image: Image.Image, suffix: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, suffix, **options)
    return sink.getvalue()


def test_every_kind_of_source_gives_the_same_embedding(embedder: Embedder, photos: Path) -> None:
    path = photos / "photo0.png"
    picture, content = pattern(0), path.read_bytes()
    expected = embedder.embed([path])
    array = np.asarray(picture)
    opaque = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    with path.open("rb") as file:
        moved = io.BytesIO(content)
        moved.seek(10)
        kinds: list[Any] = [str(path), picture, content, bytearray(content), memoryview(content), file, moved]
        for one in [*kinds, io.BytesIO(content), array, opaque, array[::1, ::1], np.asfortranarray(array)]:
            np.testing.assert_array_equal(embedder.embed(one), expected)
            np.testing.assert_array_equal(embedder.embed([one]), expected)
        np.testing.assert_array_equal(embedder.embed(kinds), np.repeat(expected, len(kinds), axis=0))


def test_a_stream_that_cannot_go_back_is_read_to_its_end(embedder: Embedder, photos: Path) -> None:
    reader, writer = os.pipe()
    content = (photos / "photo0.png").read_bytes()
    os.write(writer, content)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        np.testing.assert_array_equal(embedder.embed(stream), embedder.embed(content))


def test_arrays_of_any_size_are_resized_as_images_are(embedder: Embedder) -> None:
    for height, width in ((1, 1), (1, 90), (300, 7), (SIZE_PX, SIZE_PX), (64, 50)):
        array = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        np.testing.assert_array_equal(embedder.embed(array), embedder.embed(Image.fromarray(array)))


def test_grey_and_transparent_arrays_are_decoded_as_files_are(embedder: Embedder) -> None:
    grey = np.asarray(pattern(1).convert("L"))
    np.testing.assert_array_equal(embedder.embed(grey), embedder.embed(np.dstack([grey] * 3)))
    clear = np.zeros((9, 9, 4), np.uint8)
    np.testing.assert_array_equal(embedder.embed(clear), embedder.embed(np.full((9, 9, 3), 255, np.uint8)))


def test_a_batch_a_generator_and_a_folder_give_a_row_an_image(embedder: Embedder, tmp_path: Path) -> None:
    batch = np.stack([np.asarray(pattern(seed)) for seed in range(20)])
    expected = np.concatenate([embedder.embed(image) for image in batch])
    np.testing.assert_allclose(embedder.embed(batch), expected, atol=1e-6)
    np.testing.assert_allclose(embedder.embed(image for image in batch), expected, atol=1e-6)
    for seed in range(20):
        pattern(seed).save(tmp_path / f"{seed:02}.png")
    np.testing.assert_allclose(embedder.embed(tmp_path), expected, atol=1e-6)
    np.testing.assert_allclose(embedder.embed(str(tmp_path)), expected, atol=1e-6)
    files = sorted(tmp_path.iterdir())
    for dtype in (str, object):
        np.testing.assert_allclose(embedder.embed(np.array([str(file) for file in files], dtype)), expected, atol=1e-6)
    assert embedder.embed(iter([])).shape == (0, DIM)


def test_a_generator_may_write_every_frame_into_the_same_array(embedder: Embedder) -> None:
    def frames() -> Iterator[np.ndarray]:
        frame = np.empty((40, 48, 3), np.uint8)
        for seed in range(30):
            frame[:] = np.asarray(pattern(seed))
            yield frame

    expected = embedder.embed([pattern(seed) for seed in range(30)])
    np.testing.assert_allclose(embedder.embed(frames()), expected, atol=1e-6)


def test_a_generator_is_not_read_far_ahead(embedder: Embedder) -> None:
    seen: list[int] = []

    def images() -> Iterator[Any]:
        for seed in range(200):
            seen.append(seed)
            yield pattern(seed) if seed != 10 else b"no image"

    with pytest.raises(ImageError, match="image 10: not a readable image"):
        embedder.embed(images())
    assert len(seen) < 100


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), r"image 0 is an array of float32.*multiply values from 0 to 1 by 255"),
        (np.zeros((8, 8), np.uint16), "image 0 is an array of uint16: expected a uint8 array"),
        (np.zeros((8, 8), bool), "image 0 is an array of bool"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\).*move the channels to the end"),
        (np.zeros((8, 8, 2), np.uint8), r"shape \(8, 8, 2\)"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
        (np.zeros(8, np.uint8), r"shape \(8,\)"),
        (np.zeros((1, 1, 8, 8, 3), np.uint8), r"shape \(1, 1, 8, 8, 3\)"),
        (None, "images of type NoneType"),
        (7, "images of type int: expected a path, bytes"),
        ([7], "image 0 is of type int: expected a path, bytes"),
        ([io.StringIO("x")], "image 0 is of type StringIO"),
        (Image.new("RGB", (0, 4)), "image 0: 0 x 4 pixels, expected at least 1 x 1"),
        (Image.new("F", (4, 4), 7.5), "image 0: float values from 7.5 to 7.5"),
        (b"", "image 0: not a readable image"),
        (io.BytesIO(b"\x89PNG\r\n"), "image 0: not a readable image"),
        (["."], r"\.: a folder among images: give a folder alone"),
    ],
)
def test_what_is_no_image_is_refused_by_name(embedder: Embedder, wrong: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        embedder.embed(wrong)


def test_a_folder_without_images_is_refused(embedder: Embedder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder holds no images"):
        embedder.embed(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pil_images_are_turned_like_files(embedder: Embedder, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = as_bytes(pattern(3), "JPEG", exif=exif)
    expected = embedder.embed(content)
    lazy, loaded = (Image.open(io.BytesIO(content)) for _ in range(2))
    loaded.load()
    for image in (lazy, loaded, loaded.copy()):
        np.testing.assert_array_equal(embedder.embed(image), expected)


def test_progress_is_drawn_on_a_terminal_alone(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgeembed.device.plain_progress.SILENT_SECONDS", -1.0)
    monkeypatch.setattr("edgeembed.device.plain_progress.REDRAW_SECONDS", 0.0)
    images = [pattern(seed) for seed in range(5)]
    embedder.embed(images, progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    embedder.embed(images)
    assert capsys.readouterr().err == ""
    embedder.embed(images, progress=True)
    assert "5/5 images" in capsys.readouterr().err
    embedder.embed(iter(images), progress=True)
    assert "5 images, " in capsys.readouterr().err


def test_the_repr_says_what_was_opened(embedder: Embedder) -> None:
    shown = repr(embedder)
    for part in ("'tiny'", "fp32", "onnxruntime CPUExecutionProvider", "1 thread,", "32 x 32", "64 dim", "space-a"):
        assert part in shown


def test_a_packed_bundle_is_opened_as_its_folder_is(bundle: Path, tmp_path: Path, photos: Path) -> None:
    packed = tmp_path / "tiny.edgeembed.zip"
    pack(bundle, packed)
    shutil.copy(packed, tmp_path / "model.zip")
    for path in (packed, tmp_path / "model.zip"):
        opened = Embedder(path)
        assert (opened.name, opened.bundle) == ("tiny", path)
        np.testing.assert_array_equal(
            opened.embed(photos / "photo0.png"), Embedder(bundle).embed(photos / "photo0.png")
        )


def test_a_packed_bundle_that_was_changed_is_refused(bundle: Path, tmp_path: Path) -> None:
    packed = tmp_path / "model.zip"
    pack(bundle, packed)
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 1
    packed.write_bytes(content)
    with pytest.raises(CheckFailed, match=r"model\.zip"):
        Embedder(packed)


def embed_with(given: tuple[Embedder, str]) -> np.ndarray:
    return given[0].embed(given[1])


SHARED: list[Embedder] = []


def embed_with_shared(path: str) -> np.ndarray:
    return SHARED[0].embed(path)


@pytest.mark.parametrize("packed", [False, True])
def test_an_embedder_is_pickled_with_its_choices(bundle: Path, tmp_path: Path, photos: Path, packed: bool) -> None:
    source = bundle
    if packed:
        source = tmp_path / "model.zip"
        pack(bundle, source)
    opened = Embedder(source, threads=1)
    again = pickle.loads(pickle.dumps(opened))
    assert repr(again) == repr(opened)
    np.testing.assert_array_equal(again.embed(photos / "photo1.png"), opened.embed(photos / "photo1.png"))
    assert pickle.loads(pickle.dumps(opened)) is again  # a pool unpickles it with every task


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_an_embedder_is_used_in_a_pool_of_processes(bundle: Path, photos: Path, method: str) -> None:
    opened = Embedder(os.path.relpath(bundle), threads=2)
    files = [str(photos / f"photo{seed}.png") for seed in range(4)]
    expected = opened.embed(files)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        for found in (
            list(pool.map(opened.embed, files, timeout=120)),
            list(pool.map(embed_with, [(opened, file) for file in files], timeout=120)),
        ):
            np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_threads_that_it_lacks(bundle: Path, photos: Path) -> None:
    SHARED[:] = [Embedder(bundle, threads=2)]
    file = str(photos / "photo1.png")
    expected = SHARED[0].embed(file)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        np.testing.assert_array_equal(pool.submit(embed_with_shared, file).result(timeout=120), expected)
    np.testing.assert_array_equal(SHARED[0].embed(file), expected)
    SHARED.clear()


def test_a_bundle_that_was_replaced_is_not_unpickled_as_the_old_one(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    pickled = pickle.dumps(Embedder(folder, precision="fp32"))
    tiny_network(folder / "model.fp32.onnx", seed=5)
    write_manifest(folder)
    with pytest.raises(CheckFailed, match=r"model\.fp32\.onnx: was replaced since this embedder was opened"):
        pickle.loads(pickled)
