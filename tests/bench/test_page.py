"""report.html: what it says, and in headless Chromium that nothing is cut off or stretched."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeembed.bench.examples import THUMBNAIL_PX, Example, _picture
from edgeembed.bench.report_schema import Report
from edgeembed.bench.report_text import COLUMN_MEANINGS
from edgeembed.bench.terminal import print_summary
from edgeembed.data.manifest import ManifestRow, build_manifest
from edgeembed.evaluation import RetrievalProtocol
from tests.bench.reports import examples_of, report_of
from tests.export.web.chromium import Browser, browser, is_installed

with_chromium = pytest.mark.skipif(not is_installed(), reason="CHROMIUM MISSING: install chromium and chromedriver")

LONG = "groceries_and_clothes_of_all_shops_" * 4
MARKUP = "<script>alert(\"1\")</script> & $x_$ 'quoted'"
OTHER_SCRIPTS = "日本語のラベル עברית ไทย Ωμέγα 🧀"
REPORTS: dict[str, tuple[Report, list[Example]]] = {
    "usual": (report_of(["mobilenetv4_s", "vit_b16"]), examples_of("a thing")),
    "one file, no teacher, one domain": (report_of(["tiny"], teacher=False, domains=1), []),
    "60 files": (report_of([f"student{number}" for number in range(60)]), examples_of("thing")),
    "long names": (report_of([LONG, f"{LONG}2"]), examples_of(LONG)),
    "long names without a place to break": (report_of(["x" * 300]), examples_of("y" * 300)),
    "20 domains": (report_of(["tiny"], domains=20), examples_of("thing")),
    "markup": (report_of([MARKUP]), examples_of(MARKUP)),
    "other scripts": (report_of([OTHER_SCRIPTS]), examples_of(OTHER_SCRIPTS)),
    "not scored": (report_of(["tiny"], value=None), []),
    "pictures of any shape": (
        report_of(["tiny"]),
        examples_of("thing", [(112, 112), (60, 112), (112, 20), (500, 100), (100, 500)]),
    ),
}
MEASURE = """
    for (const image of document.images) await image.decode();
    const page = document.documentElement;
    const width = (element) => element.getBoundingClientRect();
    return {
        page: [page.scrollWidth, page.clientWidth],
        tables: [...document.querySelectorAll("table")].map((table) =>
            [table.scrollWidth, table.parentElement.clientWidth]),
        outside: [...document.querySelectorAll("main *:not(svg *)")].filter((element) =>
            !element.closest(".scroll, figure") && width(element).right > page.clientWidth + 1).length,
        images: [...document.images].map((image) => ({
            natural: image.naturalWidth / image.naturalHeight,
            shown: image.clientWidth / image.clientHeight,
            fit: getComputedStyle(image).objectFit})),
    };
"""


def rendered(name: str) -> str:
    """The page of one of the reports."""
    page = pytest.importorskip("edgeembed.bench.page", reason="the page needs jinja2 and matplotlib")
    text: str = page.render_html(*REPORTS[name])
    return text


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module", params=REPORTS)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "report.html").write_text(rendered(request.param), encoding="utf-8")
    return folder / "report.html"


def measured(window: Browser, page: Path, width: int, media: str = "screen") -> dict[str, Any]:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    window.devtools("Emulation.setDeviceMetricsOverride", **size)
    window.devtools("Emulation.setEmulatedMedia", media=media)
    window.open(page.as_uri())
    found: dict[str, Any] = window.run(MEASURE)
    return found


@with_chromium
@pytest.mark.parametrize("width", [390, 768, 1280, 1600])
def test_nothing_is_cut_off_or_stretched(window: Browser, page: Path, width: int) -> None:
    found = measured(window, page, width)
    assert found["page"][0] <= found["page"][1], "only tables and plot may scroll, in their own boxes"
    assert found["outside"] == 0
    if width >= 1280:
        assert all(table <= box for table, box in found["tables"])
    for image in found["images"]:
        assert image["shown"] == pytest.approx(image["natural"], abs=0.03) or image["fit"] == "cover"


@with_chromium
@pytest.mark.parametrize("width", [720, 1040])  # A4 and Letter less their margins, upright and across
def test_on_paper_every_table_is_whole(window: Browser, page: Path, width: int) -> None:
    found = measured(window, page, width, "print")
    assert found["page"][0] <= found["page"][1]
    assert all(table <= box for table, box in found["tables"])
    assert found["outside"] == 0


def test_names_are_text_and_never_markup() -> None:
    page = rendered("markup")
    assert "<script" not in page
    assert html.escape(MARKUP).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in page


@pytest.mark.parametrize("name", REPORTS)
def test_every_column_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    report, _ = REPORTS[name]
    page = rendered(name)
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    for column, meaning in COLUMN_MEANINGS.items():
        assert column in text
        assert meaning in text
    assert "% of floor" not in text
    print_summary(report)
    printed = "".join(capsys.readouterr())
    assert all(f"{column}: {COLUMN_MEANINGS[column]}" in printed for column in ("mAP", "kept", "% of roofline"))


def test_what_was_not_scored_reads_so_and_is_not_zero(capsys: pytest.CaptureFixture[str]) -> None:
    report, _ = REPORTS["not scored"]
    page = rendered("not scored")
    assert "tiny fp32 embeds at 12.3 ms an image on 2 threads; its retrieval could not be scored." in page
    assert "not scored" in page
    assert "0.000" not in page
    print_summary(report)
    assert "not scored" in "".join(capsys.readouterr())


def test_figures_stand_beside_the_wider_interval_and_the_sizes_of_teacher_and_student(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report, _ = REPORTS["usual"]
    print_summary(report)
    printed = "".join(capsys.readouterr())
    (line,) = [line for line in printed.splitlines() if re.match("mobilenetv4_s fp32 +onnxruntime .*%", line)]
    assert re.split("  +", line)[2:] == [
        "0.8765 [0.841, 0.911]", "0.2130", "0.2970", "98.7 % [96.7, 100.7]",
        "0.8765 [0.841, 0.911]", "99.1 % [97.1, 101.1]", "1/1.04", "1.00 times",
    ]  # fmt: skip
    sentence = (
        "mobilenetv4_s fp32 keeps 98.7 % [96.7, 100.7] of the teacher's mAP at 1/1.04 of its parameters and 1.00 times "
        "its MACs, at 12.3 ms an image on 2 threads, and 99.1 % [97.1, 101.1] when it searches the teacher's own "
        "index: "
    )
    assert sentence in printed
    page = rendered("usual")
    assert sentence in html.unescape(page)
    assert '<td class="figure">0.8765 <small>[0.841, 0.911]</small></td>' in page
    assert '<td class="figure">98.7 % <small>[96.7, 100.7]</small></td>' in page
    assert "<td>1/1.04</td><td>1.00 times</td>" in page


def test_the_page_holds_the_intervals_over_queries_and_over_classes() -> None:
    cells = re.findall("<td>(.*?)</td>", rendered("usual").split("<h2>Intervals (95 %)</h2>")[1].split("</section>")[0])
    of_map, of_both = ["[0.866, 0.886]", "[0.841, 0.911]"], ["[98.2, 99.2]", "[96.7, 100.7]"]
    assert cells[:8] == [*of_map, *["\N{EN DASH}"] * 6]  # the teacher
    assert cells[8:16] == [*of_map, *of_map, *of_both, "[98.6, 99.6]", "[97.1, 101.1]"]
    alone = rendered("one file, no teacher, one domain").split("<h2>Intervals (95 %)</h2>")[1].split("</section>")[0]
    assert re.findall("<td>(.*?)</td>", alone) == of_map


def test_queries_without_a_match_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    report, _ = REPORTS["usual"]
    counted = "7 of 100 queries have no match in the index: every mean leaves them out"
    assert counted in rendered("usual")
    print_summary(report)
    assert counted in "".join(capsys.readouterr())


@pytest.mark.parametrize("size", [(40, 400), (400, 40), (300, 300), (3, 900)])
def test_an_example_of_any_shape_is_a_square_part_of_the_picture(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    manifest = build_manifest(
        tmp_path, [ManifestRow(path="a.png", label="a", domain="d", split="test", role="both")], source="test"
    )
    everything = manifest.rows("test")
    evaluation = RetrievalProtocol(manifest=manifest, split="test", query=everything, index=everything)
    assert _picture(evaluation, 0).image.size == (THUMBNAIL_PX, THUMBNAIL_PX)
