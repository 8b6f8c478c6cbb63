"""The folder of a web page: its files, its index, and what is refused. What the page does is tested in a browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeembed.device.bundle import read_bundle
from edgeembed.device.embedder import Embedder, default_bundle
from edgeembed.errors import CheckFailed, UserError
from edgeembed.export.web import index, runtime
from edgeembed.export.web import page as web_page
from edgeembed.export.web.index import (
    MAX_PICTURES,
    Picture,
    find_pictures,
    find_pictures_of_run,
    make_thumbnail,
    pick_of_each_label,
)
from edgeembed.export.web.page import build_page, choose_web_file
from edgeembed.files import read_json, sha256_of, write_json
from tests.conftest import Outcome

Run = Callable[..., Outcome]
BUNDLE = default_bundle()


@pytest.fixture
def without_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of everything else: a page needs a network for ONNX Runtime alone."""
    monkeypatch.setattr(web_page, "add_runtime", lambda folder: (folder / "runtime").write_bytes(b"left out"))


@pytest.fixture
def page(request: pytest.FixtureRequest, edgeembed: Run, tiny_data: Path, tmp_path: Path) -> Path:
    request.getfixturevalue("without_runtime")
    out = tmp_path / "page"
    outcome = edgeembed("export", BUNDLE, "--web", out, "--web-index", tiny_data)
    assert outcome.code == 0, outcome.stderr
    return out


def test_every_file_is_named_with_its_checksum(page: Path) -> None:
    site = read_json(page / "site.json")
    stored = {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}
    assert stored == {*site["files"], "site.json", "service-worker.js"}
    for name, facts in site["files"].items():
        assert facts == {"sha256": sha256_of(page / name), "bytes": (page / name).stat().st_size}
    model = site["model"]
    assert model["sha256"] == site["files"][model["file"]]["sha256"] == sha256_of(BUNDLE / model["file"])
    assert model["space_id"] == read_bundle(BUNDLE).space_id == read_json(page / "index.json")["space_id"]


def test_the_service_worker_keeps_every_file_and_changes_with_any(page: Path) -> None:
    def filled() -> tuple[dict[str, str], str]:
        text = web_page.filled_service_worker(page)
        files, _, rest = text.partition("const FILES = ")[2].partition(";")
        return json.loads(files), rest.partition('const VERSION = "')[2].partition('"')[0]

    (page / "service-worker.js").unlink()  # it does not keep itself: browsers look for a new one by themselves
    files, version = filled()
    assert {"index.html", "site.json", "model.int8.onnx"} < set(files)
    (page / "index.html").write_text("another")
    assert filled()[1] != version


def test_the_index_is_embedded_with_the_model_file_of_the_page(page: Path, tiny_data: Path) -> None:
    site, index = read_json(page / "site.json"), read_json(page / "index.json")
    vectors = np.fromfile(page / "index.f32", "<f4").reshape(-1, site["model"]["dim"])
    pictures = find_pictures(tiny_data)
    assert len(vectors) == len(index["pictures"]) == len(pictures) == site["index"]["pictures"]
    assert [entry["label"] for entry in index["pictures"]] == [picture.label for picture in pictures]
    model = Embedder(BUNDLE, precision=site["model"]["precision"], runtime="onnxruntime")
    assert np.array_equal(vectors, model.embed([picture.path for picture in pictures]))


def test_no_file_of_the_page_names_another_host() -> None:
    for path in web_page.STATIC_FILES.iterdir():
        assert "://" not in path.read_text(encoding="utf-8"), path


@pytest.mark.usefixtures("without_runtime")
def test_a_run_becomes_a_bundle_and_a_page_of_its_own_images(
    edgeembed: Run, tiny_student: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out, bundle = tmp_path / "page", tmp_path / "bundle"
    arguments = ("export", tiny_student, "--precision", "fp32", "--out", bundle, "--web", out, "--json")
    outcome = edgeembed(*arguments)
    assert outcome.code == 0, outcome.stderr
    assert json.loads(outcome.stdout)["space_id"] == read_json(out / "site.json")["model"]["space_id"]
    assert sha256_of(out / "model.fp32.onnx") == sha256_of(bundle / "model.fp32.onnx")
    assert find_pictures_of_run(tiny_student) == find_pictures(tiny_data)


def test_an_older_page_is_replaced_but_no_other_folder(
    edgeembed: Run, page: Path, tiny_data: Path, tmp_path: Path
) -> None:
    (page / "stale.txt").write_text("of the older page")
    outcome = edgeembed("export", BUNDLE, "--web", page, "--web-index", tiny_data, "--web-precision", "fp32", "--json")
    assert outcome.code == 0, outcome.stderr
    assert json.loads(outcome.stdout) == read_json(page / "site.json")
    assert not (page / "stale.txt").exists()
    assert (page / "model.fp32.onnx").exists()
    assert not (page / "model.int8.onnx").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept.txt").write_text("mine")
    outcome = edgeembed("export", BUNDLE, "--web", other, "--web-index", tiny_data)
    assert (outcome.code, "exists and is not a web page" in outcome.stderr) == (2, True)
    assert (other / "kept.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([BUNDLE, "--web", "PAGE"], "a bundle holds no images: name pictures for the page with --web-index"),
        ([BUNDLE, "--web", "PAGE", "--web-index", "nowhere"], "no such folder or manifest"),
        ([BUNDLE, "--web", "PAGE", "--web-index", BUNDLE / "bundle.json"], "expected a folder of pictures, or a manif"),
        ([BUNDLE, "--web", "PAGE", "--web-index", BUNDLE], "holds no pictures"),
        ([BUNDLE, "--web-index", "photos"], "add --web FOLDER"),
        ([BUNDLE], "is a bundle already"),
    ],
)
def test_mistakes_are_one_line(edgeembed: Run, tmp_path: Path, arguments: list[object], told: str) -> None:
    outcome = edgeembed("export", *(tmp_path / "page" if item == "PAGE" else item for item in arguments))
    assert outcome.code == 2
    assert outcome.stderr.startswith("error: ")
    assert told in outcome.stderr
    assert not (tmp_path / "page").exists()


def test_a_file_that_its_gate_refused_is_taken_only_by_name() -> None:
    manifest = read_bundle(BUNDLE)
    assert choose_web_file(manifest, None).precision == "int8"
    assert choose_web_file(manifest, "fp32").precision == "fp32"
    with pytest.raises(UserError, match="no precision 'fp16' for the page, it holds fp32, int8"):
        choose_web_file(manifest, "fp16")
    refused = tuple(
        file.model_copy(update={"accepted_worse": ("cosine",)}) if file.precision == "int8" else file
        for file in manifest.files
    )
    worse = manifest.model_copy(update={"files": refused})
    assert choose_web_file(worse, None).precision == "fp32"
    assert choose_web_file(worse, "int8").precision == "int8"


def test_a_file_whose_loss_is_not_shown_is_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_bundle(BUNDLE)
    loss = {"value": 0.0, "ci95": [-0.01, 0.01], "limit": 0.005, "shown": False, "matched_queries": 16, "classes": 8}
    retrieval = {"map_loss": {**loss, "queries_needed": 300}}
    files = tuple(
        file.model_copy(update={"retrieval": retrieval} if file.precision == "int8" else {}) for file in manifest.files
    )
    assert choose_web_file(manifest.model_copy(update={"files": files}), None).precision == "int8"
    assert "model.int8.onnx in onnxruntime: not shown: 16 matched queries of 8 classes" in caplog.text


@pytest.mark.usefixtures("without_runtime")
def test_a_changed_model_is_not_published(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(BUNDLE, bundle)
    content = bytearray((bundle / "model.int8.onnx").read_bytes())
    content[-100] ^= 1
    (bundle / "model.int8.onnx").write_bytes(content)
    with pytest.raises(CheckFailed, match="sha256"):
        build_page(bundle, tmp_path / "page", [])
    assert not (tmp_path / "page").exists()


def test_without_npm_the_build_fails_with_the_reason(
    edgeembed: Run, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = edgeembed("export", BUNDLE, "--web", tmp_path / "page", "--web-index", tiny_data)
    assert outcome.code == 1
    assert outcome.stderr == (
        "error: onnxruntime-web@1.30.0 is fetched with npm, which is not installed: install Node.js, then build again\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("npm") is None, reason="NPM MISSING: install Node.js")
def test_without_a_network_the_build_fails_with_the_reason(
    edgeembed: Run, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "empty"))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retry_mintimeout", "1")
    outcome = edgeembed("export", BUNDLE, "--web", tmp_path / "page", "--web-index", tiny_data)
    assert outcome.code == 1
    assert outcome.stderr.startswith("error: onnxruntime-web@1.30.0: npm cannot fetch it")
    assert "is there a network?" in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1
    assert not (tmp_path / "page").exists()


def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "download_package", lambda folder: written(folder / "package.tgz", b"something else"))
    with pytest.raises(CheckFailed, match=r"sha512 is .* expected q0y\+JrrtukXS.*do not use it"):
        runtime.add_runtime(tmp_path)
    assert list(tmp_path.iterdir()) == []


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_building_from_a_bundle_imports_neither_torch_nor_pyarrow(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (20, 20), "red").save(photos / "red.png")
    code = f"""
import sys
from edgeembed.cli import run
from edgeembed.export.web import page as web_page
web_page.add_runtime = lambda folder: None
assert run(["export", {str(BUNDLE)!r}, "--web", {str(tmp_path / "page")!r}, "--web-index", {str(photos)!r}]) == 0
heavy = {{"torch", "pyarrow", "yaml", "onnx", "openvino", "pandas", "rich"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=os.environ)
    assert read_json(tmp_path / "page" / "index.json")["pictures"][0]["label"] == "red"


def test_pictures_are_taken_from_all_labels() -> None:
    def named(label: str, count: int) -> list[Picture]:
        return [Picture(path=Path(f"{label}{number}"), label=label) for number in range(count)]

    pictures = named("a", 50) + named("b", 2) + named("c", 50)
    assert [str(picture.path) for picture in pick_of_each_label(pictures, 8)] == [
        "a0",
        "b0",
        "c0",
        "a1",
        "b1",
        "c1",
        "a2",
        "c2",
    ]
    many = [picture for number in range(1000) for picture in named(f"{number:03d}", 1)]
    assert [picture.label for picture in pick_of_each_label(many, 4)] == ["000", "250", "500", "750"]
    assert len(pick_of_each_label(many, MAX_PICTURES)) == MAX_PICTURES


def test_folders_and_tables_label_pictures_and_the_index_comes_first(tmp_path: Path) -> None:
    for name in ("fruit/apple/1.png", "fruit/pear/2.png", "3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert [picture.label for picture in find_pictures(tmp_path)] == ["3", "fruit/apple", "fruit/pear"]
    table = tmp_path / "table.csv"
    table.write_text("path,label,domain,split,role\n3.png,,x,train,\nfruit/apple/1.png,apple,x,test,index\n")
    assert find_pictures(table) == [Picture(path=tmp_path / "fruit/apple/1.png", label="apple")]
    table.write_text("path\n3.png\n")
    assert find_pictures(table) == [Picture(path=tmp_path / "3.png", label="3")]
    table.write_text("file\n3.png\n")
    with pytest.raises(UserError, match="lacks column 'path'"):
        find_pictures(table)


@pytest.mark.usefixtures("without_runtime")
def test_pictures_that_cannot_be_decoded_are_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    site = build_page(BUNDLE, tmp_path / "page", find_pictures(tmp_path))
    assert site["index"]["pictures"] == 1
    assert "bad.png" in caplog.text
    with pytest.raises(UserError, match="none of 1 pictures for the page can be decoded"):
        build_page(BUNDLE, tmp_path / "page", [Picture(path=tmp_path / "bad.png", label="bad")])
    assert (tmp_path / "page" / "site.json").exists(), "the older page stays"


def test_thumbnails_hold_pixels_alone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    Image.new("RGB", (900, 600), "red").save(tmp_path / "x.jpg", exif=exif, icc_profile=b"a profile", comment=b"mine")
    make_thumbnail(tmp_path / "x.jpg").save(tmp_path / "x.webp")
    with Image.open(tmp_path / "x.webp") as small:
        assert (small.size, dict(small.getexif()), small.info.get("icc_profile")) == ((160, 107), {}, None)


def test_a_run_without_recorded_data_needs_an_index(tmp_path: Path) -> None:
    write_json(tmp_path / "model.json", {"space_id": "a"})
    with pytest.raises(UserError, match="--web-index"):
        index.find_pictures_of_run(tmp_path)
