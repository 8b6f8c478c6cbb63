"""Draws search results as one image: a row for each query, with its results from left to right."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from edgeembed.device.images import MAX_PIXELS, ImageError, load_rgb
from edgeembed.errors import UserError, unknown_choice
from edgeembed.files import write_atomically

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
SHEET_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
TILE_PX, GAP_PX, MARGIN_PX, CAPTION_PX, FRAME_PX = 176, 12, 20, 44, 4
FONT_PX = 13
PAPER, INK, FADED, EMPTY, ACCENT = "#ffffff", "#1c1e21", "#6b7178", "#e9ebee", "#d9480f"


def similarity_texts(similarities: Sequence[float]) -> list[str]:
    """The similarities of one query's results with as many digits as distinguish them: 4 to 7, which float32 has."""
    for digits in (4, 5, 6, 7):
        texts = [f"{similarity:.{digits}f}" for similarity in similarities]
        if len(set(texts)) == len(set(similarities)):
            break
    return texts


def check_sheet(path: Path) -> None:
    """Raises UserError, before any work is done, for an image format that `contact_sheet` cannot write."""
    if path.suffix.lower() not in SHEET_FORMATS:
        raise unknown_choice("picture suffix", path.suffix, SHEET_FORMATS, f"({path})")


def contact_sheet(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], out: Path) -> None:
    """Draws one row for each query: the query in a frame, then its results, (file, similarity), from left to right.

    A file that cannot be decoded here becomes a grey tile that says so. Raises UserError for a sheet of more pixels
    than image viewers are likely to open.
    """
    check_sheet(out)
    columns = 1 + max((len(results) for _, results in rows), default=0)
    width = 2 * MARGIN_PX + columns * (TILE_PX + GAP_PX)  # the query stands a second gap apart
    height = 2 * MARGIN_PX + len(rows) * (TILE_PX + CAPTION_PX + GAP_PX) - GAP_PX
    # JPEG allows at most 65,535 pixels on a side.
    if width * height > MAX_PIXELS or max(width, height) > 65_000:
        raise UserError(f"{out}: the sheet would have {width} x {height} pixels: ask for fewer queries or results")
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (query, results) in enumerate(rows):
        top = MARGIN_PX + row * (TILE_PX + CAPTION_PX + GAP_PX)
        if row:
            middle = top - GAP_PX // 2
            draw.line((MARGIN_PX, middle, width - MARGIN_PX, middle), EMPTY)
        _draw_tile(sheet, (MARGIN_PX, top), query, "query", ACCENT)
        frame = (MARGIN_PX - FRAME_PX, top - FRAME_PX, MARGIN_PX + TILE_PX + FRAME_PX - 1, top + TILE_PX + FRAME_PX - 1)
        draw.rectangle(frame, outline=ACCENT, width=FRAME_PX)
        texts = similarity_texts([similarity for _, similarity in results])
        for column, ((path, _), text) in enumerate(zip(results, texts, strict=True), 1):
            left = MARGIN_PX + GAP_PX + column * (TILE_PX + GAP_PX)
            _draw_tile(sheet, (left, top), path, f"{column}.  {text}", INK)
    sink = io.BytesIO()
    sheet.save(sink, SHEET_FORMATS[out.suffix.lower()])
    write_atomically(out, sink.getvalue())


def _draw_tile(sheet: Image.Image, corner: tuple[int, int], path: str, caption: str, ink: str) -> None:
    """Draws a thumbnail with its caption and file name below."""
    left, top = corner
    sheet.paste(_thumbnail(path), corner)
    draw = ImageDraw.Draw(sheet)
    font = _font()
    draw.text((left, top + TILE_PX + 6), caption, fill=ink, font=font)
    name = _shortened(Path(path).name, font, TILE_PX)
    draw.text((left, top + TILE_PX + 8 + FONT_PX + 4), name, fill=FADED, font=font)


def _thumbnail(path: str) -> Image.Image:
    """The image in the middle of a tile, with its aspect ratio; a grey tile with the reason where there is none."""
    tile = Image.new("RGB", (TILE_PX, TILE_PX), EMPTY)
    try:
        # Decoding at twice the size is fast and still sharp.
        image = ImageOps.contain(load_rgb(path, at_least_px=2 * TILE_PX), (TILE_PX, TILE_PX))
    except ImageError:
        reason = "not readable" if Path(path).exists() else "not on this device"
        ImageDraw.Draw(tile).text((TILE_PX // 2, TILE_PX // 2), reason, fill=FADED, font=_font(), anchor="mm")
        return tile
    tile.paste(image, ((TILE_PX - image.width) // 2, (TILE_PX - image.height) // 2))
    return tile


def _font() -> Font:
    return ImageFont.load_default(FONT_PX)


def _shortened(name: str, font: Font, width_px: int) -> str:
    """A name without its middle where it is too wide; numbers and suffix at the end distinguish files."""
    # File names need not be UTF-8, but Pillow draws only text that is.
    name = name.encode("utf-8", "replace").decode()
    shown, kept = name, len(name)
    while font.getlength(shown) > width_px and kept > 2:
        kept -= 1
        shown = f"{name[: kept // 2]}...{name[len(name) - kept + kept // 2 :]}"
    return shown
