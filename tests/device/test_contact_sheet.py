"""Contact sheets show the query and its results."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from edgeembed.device.contact_sheet import ACCENT, EMPTY, FRAME_PX, GAP_PX, MARGIN_PX, TILE_PX, contact_sheet
from edgeembed.errors import UserError
from tests.device.conftest import pattern


def test_a_sheet_shows_the_query_in_a_frame_and_the_results_beside_it(tmp_path: Path) -> None:
    colours = {"red": "#ff0000", "green": "#00ff00", "blue": "#0000ff"}
    for name, colour in colours.items():
        Image.new("RGB", (300, 300), colour).save(tmp_path / f"{name}.png")
    red, green, blue = (str(tmp_path / f"{name}.png") for name in colours)
    contact_sheet([(red, [(green, 0.9), (blue, 0.5)]), (blue, [(red, 0.2)])], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = sheet.convert("RGB")
    middle = MARGIN_PX + TILE_PX // 2
    step = TILE_PX + GAP_PX
    shown = [pixels.getpixel((middle + (GAP_PX if column else 0) + column * step, middle)) for column in range(3)]
    assert shown == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert pixels.getpixel((MARGIN_PX - FRAME_PX, middle)) == tuple(bytes.fromhex(ACCENT[1:]))


def test_a_photo_keeps_its_shape_on_the_sheet(tmp_path: Path) -> None:
    Image.new("RGB", (400, 100), "#0000ff").save(tmp_path / "wide.png")
    contact_sheet([(str(tmp_path / "wide.png"), [])], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = sheet.convert("RGB")
    x = MARGIN_PX + TILE_PX // 2
    blue = [pixels.getpixel((x, MARGIN_PX + y)) == (0, 0, 255) for y in range(TILE_PX)]
    assert sum(blue) == TILE_PX // 4


def test_what_cannot_be_shown_is_a_grey_tile_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    absent = str(tmp_path / "a name that is far too long to stand below one small picture, 000123.jpg")
    contact_sheet([(str(tmp_path / "broken.jpg"), [(absent, 0.1)])], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = sheet.convert("RGB")
    for column in range(2):
        left = MARGIN_PX + column * (TILE_PX + GAP_PX + GAP_PX)
        tile = pixels.crop(
            (left + FRAME_PX, MARGIN_PX + FRAME_PX, left + TILE_PX - FRAME_PX, MARGIN_PX + TILE_PX - FRAME_PX)
        )
        colours = {colour for _, colour in tile.getcolors(maxcolors=100_000) or []}
        assert tuple(bytes.fromhex(EMPTY[1:])) in colours
        assert len(colours) > 1, "no words on it"


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_a_sheet_may_be_another_kind_of_picture(tmp_path: Path, suffix: str) -> None:
    pattern(0).save(tmp_path / "a.png")
    contact_sheet([(str(tmp_path / "a.png"), [])], tmp_path / f"sheet{suffix}")
    with Image.open(tmp_path / f"sheet{suffix}") as sheet:
        sheet.load()


def test_a_sheet_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown picture suffix '\.pgn'.*did you mean '\.png'"):
        contact_sheet([], tmp_path / "sheet.pgn")
    with pytest.raises(UserError, match="ask for fewer queries or results"):
        contact_sheet([("a", [])] * 5000, tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())
