"""The page in headless Chromium: the same embeddings as in Python, offline use, and every kind of dropped file."""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeembed.arrays import FloatArray, UInt8Array
from edgeembed.data.manifest import read_manifest
from edgeembed.device.bundle import read_bundle
from edgeembed.device.contact_sheet import similarity_texts
from edgeembed.device.embedder import Embedder, default_bundle
from edgeembed.device.images import load_pixels
from edgeembed.errors import CheckFailed
from edgeembed.export.web import page as web_page
from edgeembed.export.web.index import find_pictures
from edgeembed.export.web.page import build_page
from edgeembed.files import read_json
from tests.export.web.chromium import Browser, PageError, browser, is_installed, served
from tests.export.web.dropped_files import EITHER, REFUSED, SHOWN, write_dropped_files

pytestmark = pytest.mark.skipif(not is_installed(), reason="CHROMIUM MISSING: install chromium and chromedriver")

BUNDLE = default_bundle()
SIDE = read_bundle(BUNDLE).input.height
LEAST_COSINE = {"fp32": 0.9999, "int8": 0.995}
"""To Python's embeddings of the same pixels. The int8 file has float32 operators between the int8 ones: where their
results lie at the edge of a rounding step, processors round differently."""
TAB = "\ue004"
DROP = """
    const content = await (await fetch(args[0])).blob();
    const transfer = new DataTransfer();
    transfer.items.add(new File([content], args[1], {type: content.type}));
    document.body.dispatchEvent(new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer: transfer}));
"""
OUTCOME = """
    const text = (id) => document.getElementById(id).hidden ? "" : document.getElementById(id).textContent;
    while (["Searching …", "Loading the model …"].includes(text("status"))) await new Promise(requestAnimationFrame);
    return {
        problem: text("problem"),
        status: text("status"),
        labels: [...document.querySelectorAll("#found:not([hidden]) .label")].map((label) => label.textContent),
        scores: [...document.querySelectorAll("#found:not([hidden]) .score")].map((score) => score.textContent),
        since_load_ms: performance.now() - performance.getEntriesByType("navigation")[0].loadEventEnd,
    };
"""
EMBED_FILE = """
    const {pixels, embedding} = await window.edgeembed.searchFile(await (await fetch(args[0])).blob());
    return [Array.from(pixels), Array.from(embedding)];
"""


@dataclass(frozen=True)
class Site:
    """A served folder that holds pages, and files to drop on them."""

    folder: Path
    url: str

    def put(self, path: Path) -> str:
        """The address of a copy of a file, below the page's host; its own, as browsers remember what they fetched."""
        name = f"{len(list((self.folder / 'files').iterdir()))} {path.name}"
        shutil.copy(path, self.folder / "files" / name)
        return f"{self.url}/files/{urllib.parse.quote(name)}"


def build(out: Path, index: Path, precision: str | None = None) -> Path:
    try:
        build_page(BUNDLE, out, find_pictures(index), precision=precision)
    except CheckFailed as error:
        if "npm" not in str(error):
            raise
        pytest.skip(f"ONNX RUNTIME FOR BROWSERS MISSING: {error}")
    return out


@pytest.fixture(scope="module")
def site(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """`page/` and `fp32/` in a folder of a folder, as a page of many on one host lies."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "files").mkdir()
    build(folder / "some/where/page", tiny_data)
    build(folder / "some/where/fp32", tiny_data, "fp32")
    with served(folder) as (url, _):
        yield Site(folder, url)


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    """One window for all tests that leave nothing behind."""
    with browser() as opened:
        yield opened


@pytest.fixture
def page(site: Site, window: Browser) -> Browser:
    """The page, loaded anew."""
    window.open(f"{site.url}/some/where/page/")
    window.wait_until_ready()
    return window


def embedder(precision: str = "int8") -> Embedder:
    return Embedder(BUNDLE, precision=precision, runtime="onnxruntime")


def drop(page: Browser, url: str, name: str = "dropped") -> dict[str, Any]:
    page.run(DROP, url, name)
    return dict(page.run(OUTCOME))


def embed_file(page: Browser, url: str) -> tuple[UInt8Array, FloatArray]:
    pixels, embedding = page.run(EMBED_FILE, url)
    return np.array(pixels, np.uint8).reshape(SIDE, SIDE, 3), np.array(embedding, np.float32)


def embed_pixels(page: Browser, pixels: UInt8Array) -> FloatArray:
    script = "return Array.from(await window.edgeembed.embedPixels(Uint8Array.from(args[0])))"
    return np.array(page.run(script, pixels.ravel().tolist()), np.float32)


def p1(cosines: list[float]) -> float:
    return float(np.percentile(cosines, 1))


def rendered(tiny_data: Path, count: int) -> list[Path]:
    files = read_manifest(tiny_data).files
    return [Path(file) for file in files[:: len(files) // count][:count]]


def photographs(real_data: Path, count: int) -> list[Path]:
    files = sorted((real_data / "grocery/dataset/test").rglob("*.jpg"))
    return files[:: len(files) // count][:count]


def require_python_embeddings(page: Browser, site: Site, files: list[Path]) -> None:
    reference_ND = embedder().embed(files)
    cosines = []
    for file, reference_D in zip(files, reference_ND, strict=True):
        pixels, embedding_D = embed_file(page, site.put(file))
        assert np.abs(pixels.astype(int) - load_pixels(file, SIDE, SIDE)).max() <= 2
        cosines.append(float(embedding_D @ reference_D))
    assert p1(cosines) >= 0.995


def test_a_dropped_picture_finds_itself_and_four_more(page: Browser, site: Site, tiny_data: Path) -> None:
    picture = find_pictures(tiny_data)[3]
    outcome = drop(page, site.put(picture.path))
    assert outcome["problem"] == ""
    assert len(outcome["labels"]) == 5
    assert outcome["labels"][0] == picture.label
    assert re.fullmatch(rf"Found\. Most similar: {picture.label}, [01]\.\d{{4,7}}\.", outcome["status"])
    assert len(set(outcome["scores"])) == 5
    shown = "return [...document.querySelectorAll('#results img')].map((image) => image.naturalWidth)"
    page.run("for (const image of document.querySelectorAll('#results img')) await image.decode()")
    assert all(width > 0 for width in page.run(shown))


@pytest.mark.parametrize(
    ("scores", "texts"),
    [
        ([0.9, 0.5, 0.25], ["0.9000", "0.5000", "0.2500"]),
        ([0.99999, 0.99998, 0.99996], ["0.99999", "0.99998", "0.99996"]),
        ([0.9999999, 0.9999998, 0.5], ["0.9999999", "0.9999998", "0.5000000"]),
        ([1.0, 1.0, -0.2], ["1.0000", "1.0000", "-0.2000"]),
        ([1 - 2e-8, 1 - 3e-8], ["1.0000000", "1.0000000"]),
    ],
)
def test_neighbours_that_differ_are_told_apart(page: Browser, scores: list[float], texts: list[str]) -> None:
    source = (Path(web_page.__file__).parent / "static/app.js").read_text()
    function = source[source.index("function formatScores") : source.index("// Searching")]
    assert page.run(f"{function} return formatScores(args[0])", scores) == texts
    assert similarity_texts(scores) == texts


def test_rendered_files_get_the_embeddings_of_python(page: Browser, site: Site, tiny_data: Path) -> None:
    require_python_embeddings(page, site, rendered(tiny_data, 20))


def test_photographs_get_the_embeddings_of_python(page: Browser, site: Site, real_data: Path) -> None:
    require_python_embeddings(page, site, photographs(real_data, 20))


@pytest.mark.parametrize(("folder", "precision"), [("fp32", "fp32"), ("page", "int8")])
def test_the_same_pixels_get_the_embeddings_of_python(
    page: Browser, site: Site, tiny_data: Path, folder: str, precision: str
) -> None:
    page.open(f"{site.url}/some/where/{folder}/")
    pixels_NHWC = np.stack([load_pixels(file, SIDE, SIDE) for file in rendered(tiny_data, 20)])
    reference_ND = embedder(precision).embed_pixels(pixels_NHWC)
    found = [embed_pixels(page, pixels) for pixels in pixels_NHWC]
    assert p1([float(a @ b) for a, b in zip(found, reference_ND, strict=True)]) >= LEAST_COSINE[precision]


def test_the_same_pixels_of_photographs_get_the_embeddings_of_python(page: Browser, real_data: Path) -> None:
    pixels_NHWC = np.stack([load_pixels(file, SIDE, SIDE) for file in photographs(real_data, 20)])
    reference_ND = embedder().embed_pixels(pixels_NHWC)
    found = [embed_pixels(page, pixels) for pixels in pixels_NHWC]
    assert p1([float(a @ b) for a, b in zip(found, reference_ND, strict=True)]) >= LEAST_COSINE["int8"]


def test_pixels_of_lossless_files_are_those_of_pillow_at_any_size(page: Browser, site: Site, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (SIDE, SIDE), (50, 60), (143, 300), (300, 143), (1000, 37), (3, 2000), (700, 900), (900, 700)]
    for height, width in sizes:
        path = tmp_path / f"{height} x {width}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        pixels, _ = embed_file(page, site.put(path))
        assert np.array_equal(pixels, load_pixels(path, SIDE, SIDE)), path.name


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_pictures_are_turned_by_their_orientation(
    page: Browser, site: Site, tiny_data: Path, tmp_path: Path, suffix: str
) -> None:
    with Image.open(rendered(tiny_data, 1)[0]) as image:
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            path = tmp_path / f"{orientation}.{suffix}"
            image.resize((60, 40)).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
            pixels, _ = embed_file(page, site.put(path))
            assert np.array_equal(pixels, load_pixels(path, SIDE, SIDE)), path.name


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "CMYK", "1"])
def test_modes_become_the_same_rgb(page: Browser, site: Site, tiny_data: Path, tmp_path: Path, mode: str) -> None:
    with Image.open(rendered(tiny_data, 1)[0]) as image:
        converted = image.convert(mode)
    if mode.endswith("A"):
        converted.putalpha(Image.linear_gradient("L").resize(image.size))
    path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
    converted.save(path)
    pixels, _ = embed_file(page, site.put(path))
    assert np.abs(pixels.astype(int) - load_pixels(path, SIDE, SIDE)).max() <= 1


def test_nothing_that_is_dropped_stops_the_page(page: Browser, site: Site, tiny_data: Path, tmp_path: Path) -> None:
    good = find_pictures(tiny_data)[0]
    good_url = site.put(good.path)
    drops = write_dropped_files(tmp_path)
    assert len(drops) >= 50
    for name, expected in drops.items():
        outcome = drop(page, site.put(tmp_path / name), name)
        refused = outcome["problem"] != ""
        assert refused != bool(outcome["labels"]), (name, outcome)
        assert not outcome["problem"].startswith("Something went wrong"), (name, outcome)
        assert expected == EITHER or expected == (REFUSED if refused else SHOWN), (name, outcome)
        again = drop(page, good_url)
        assert (again["problem"], again["labels"][:1]) == ("", [good.label]), name
    page.run("document.body.dispatchEvent(new DragEvent('drop', {bubbles: true, dataTransfer: new DataTransfer()}))")
    assert "holds no file" in page.run(OUTCOME)["problem"]


def test_a_huge_file_and_one_that_is_gone_are_explained(page: Browser, tmp_path: Path) -> None:
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(2**30 + 1)  # which takes no room on disk
    page.choose_file("#file", tmp_path / "huge.jpg")
    assert "larger than 1 GB" in page.run(OUTCOME)["problem"]
    Image.new("RGB", (9, 9)).save(tmp_path / "gone.png")
    page.run("addEventListener('change', ({target}) => { window.chosen = target.files[0]; }, true)")
    page.choose_file("#file", tmp_path / "gone.png")
    (tmp_path / "gone.png").unlink()
    with pytest.raises(PageError, match="This file cannot be read: it is gone"):
        page.run("await window.edgeembed.searchFile(window.chosen)")


def test_a_picture_can_be_pasted(page: Browser, site: Site, tiny_data: Path) -> None:
    picture = find_pictures(tiny_data)[1]
    pasted = DROP.replace("DragEvent", "ClipboardEvent").replace('"drop"', '"paste"')
    page.run(pasted.replace("dataTransfer:", "clipboardData:"), site.put(picture.path), "pasted")
    assert page.run(OUTCOME)["labels"][0] == picture.label


def test_the_camera_takes_a_picture(page: Browser) -> None:
    page.click("#camera")
    page.run("const video = document.getElementById('video'); while (!video.videoWidth) await video.play()")
    page.click("#shoot")
    outcome = page.run(OUTCOME)
    assert (outcome["problem"], len(outcome["labels"])) == ("", 5)
    assert page.run("return document.getElementById('video').srcObject") is None, "the camera is off again"


def test_a_keyboard_reaches_everything_and_a_screen_reader_is_told(page: Browser) -> None:
    reached = []
    for _ in range(2):
        page.press(TAB)
        reached.append(page.run("return document.activeElement.id"))
    assert reached == ["file", "camera"]
    nodes = page.devtools("Accessibility.getFullAXTree")["nodes"]
    named = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if "role" in node}
    assert {("button", "Use the camera"), ("heading", "Visual search"), ("region", "Your picture")} <= named
    assert any(role == "button" and name.startswith("Choose a picture") for role, name in named)
    assert {role for role, _ in named} >= {"status", "main"}


def test_no_request_leaves_the_host_and_nothing_is_complained_of(page: Browser, site: Site, tiny_data: Path) -> None:
    drop(page, site.put(rendered(tiny_data, 1)[0]))
    hosts = "return performance.getEntriesByType('resource').map((entry) => new URL(entry.name).origin)"
    assert set(page.run(hosts)) == {site.url}
    assert page.log() == []


def test_the_first_result_comes_within_three_seconds_and_later_ones_without_a_network(
    site: Site, tiny_data: Path
) -> None:
    first, second, third = find_pictures(tiny_data)[:3]
    with browser() as fresh, served(site.folder) as (url, server):
        fresh.open(f"{url}/some/where/page/")
        fresh.choose_file("#file", first.path)
        outcome = fresh.run(OUTCOME)
        assert outcome["labels"][0] == first.label
        assert outcome["since_load_ms"] < 3000
        fresh.wait_until_ready()
        fresh.run("await window.edgeembed.offline")
        server.shutdown()
        server.server_close()
        fresh.devtools("Network.enable")
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        fresh.devtools("Network.emulateNetworkConditions", **offline)
        for picture in (second, third):
            fresh.reload()
            fresh.choose_file("#file", picture.path)
            outcome = fresh.run(OUTCOME)
            assert (outcome["problem"], outcome["labels"][:1]) == ("", [picture.label])
            fresh.run("for (const image of document.querySelectorAll('#results img')) await image.decode()")


def test_a_page_that_was_built_again_replaces_what_is_kept(tiny_data: Path, tmp_path: Path) -> None:
    build(tmp_path / "page", tiny_data)
    with browser() as fresh, served(tmp_path) as (url, _):
        fresh.open(f"{url}/page/")
        fresh.wait_until_ready()
        fresh.run("await window.edgeembed.offline")
        build(tmp_path / "page", tiny_data, "fp32")
        fresh.reload()
        fresh.run(
            "const all = await navigator.serviceWorker.getRegistration(); await all.update();"
            "while (all.installing || all.waiting) await new Promise((wake) => setTimeout(wake, 20))"
        )
        fresh.reload()
        fresh.wait_until_ready()
        assert "fp32" in fresh.run("return document.getElementById('about').textContent")
        assert len(fresh.run("return caches.keys()")) == 1


def test_a_changed_model_or_an_index_of_another_space_is_refused(site: Site, window: Browser) -> None:
    changed, foreign = site.folder / "changed", site.folder / "foreign"
    for folder in (changed, foreign):
        shutil.copytree(site.folder / "some/where/page", folder)
    content = bytearray((changed / "model.int8.onnx").read_bytes())
    content[-100] ^= 1
    (changed / "model.int8.onnx").write_bytes(content)
    index = {**read_json(foreign / "index.json"), "space_id": "another"}
    (foreign / "index.json").write_text(json.dumps(index))
    facts = read_json(foreign / "site.json")
    facts["files"] = web_page.checksums(foreign)
    (foreign / "site.json").write_text(json.dumps(facts))
    for folder, told in ((changed, "model.int8.onnx is not the file that"), (foreign, "in embedding space another")):
        window.open(f"{site.url}/{folder.name}/")
        with pytest.raises(PageError, match=told):
            window.wait_until_ready()
        assert told in window.run("return document.getElementById('problem').textContent")


def test_over_plain_http_it_searches_too(site: Site, window: Browser, tiny_data: Path) -> None:
    """As from a machine in the same house: browsers then offer no checksums, no service worker and no camera."""
    url = site.url.replace("127.0.0.1", "plain.test")
    picture = find_pictures(tiny_data)[2]
    window.open(f"{url}/some/where/page/")
    assert window.run("return isSecureContext") is False
    outcome = drop(window, site.put(picture.path).replace(site.url, url))
    assert (outcome["problem"], outcome["labels"][:1]) == ("", [picture.label])
    window.run("document.getElementById('file').addEventListener('click', (click) => { click.preventDefault();"
               " window.asked = click.target.getAttribute('capture'); })")  # fmt: skip
    window.click("#camera")
    assert window.run("return window.asked") == "environment", "a phone's own camera is asked for"


def test_several_threads_where_the_host_isolates_the_page(site: Site, window: Browser, tiny_data: Path) -> None:
    isolated = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
    pixels = load_pixels(rendered(tiny_data, 1)[0], SIDE, SIDE)
    with served(site.folder, isolated) as (url, _):
        window.open(f"{url}/some/where/page/")
        assert window.run("return crossOriginIsolated") is True
        found = embed_pixels(window, pixels)
    assert float(found @ embedder().embed_pixels(pixels[None])[0]) >= LEAST_COSINE["int8"]


@pytest.mark.skipif("EDGEEMBED_SCREENSHOT" not in os.environ, reason="writes the README's picture where it is asked to")
def test_its_picture_is_taken(site: Site, window: Browser, real_data: Path) -> None:
    build(site.folder / "groceries", real_data / "grocery/dataset/train")
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1.5, "mobile": True}
    window.devtools("Emulation.setDeviceMetricsOverride", **size)
    window.open(f"{site.url}/groceries/")
    outcome = drop(window, site.put(photographs(real_data, 20)[1]))
    assert outcome["problem"] == ""
    window.run("for (const image of document.querySelectorAll('#results img')) await image.decode()")
    with Image.open(BytesIO(window.screenshot())) as image:
        image.convert("RGB").quantize(128).save(os.environ["EDGEEMBED_SCREENSHOT"], optimize=True)
    window.devtools("Emulation.clearDeviceMetricsOverride")
