"""Chooses a few queries and shows their results by teacher and student, for the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from edgeembed.arrays import BoolArray, IntArray
from edgeembed.data.manifest import Rows
from edgeembed.device.images import load_rgb
from edgeembed.evaluation import EmbeddedRows, RetrievalProtocol, have_match
from edgeembed.metrics import top_k

NUM_EXAMPLES, NUM_SHOWN = 6, 5
THUMBNAIL_PX, JPEG_QUALITY = 112, 82
CELL_PX, CAPTION_PX, GAP_PX = THUMBNAIL_PX + 8, 18, 14
INK, RIGHT, WRONG = "#1c2430", "#1d7f47", "#c23434"
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image as the report shows it; `is_right` is None for a query."""

    jpeg: bytes
    label: str
    is_right: bool | None = None

    @property
    def data_uri(self) -> str:
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode()

    @property
    def image(self) -> Image.Image:
        return Image.open(io.BytesIO(self.jpeg))


@dataclass(frozen=True, kw_only=True)
class Example:
    """A query and its best results by model ("teacher", "student")."""

    query: Picture
    results: dict[str, list[Picture]]


def choose_examples(
    protocol: RetrievalProtocol, student: EmbeddedRows | None, teacher: EmbeddedRows | None, rows: Rows
) -> list[Example]:
    """Queries drawn with a fixed seed: half where the student's first result is right, half where the two differ.

    Without a teacher the other half are queries where the student's first result is wrong. Each model searches its own
    index. `rows`: those that every model could embed.
    """
    if student is None:
        return []
    query, index = np.intersect1d(protocol.query, rows), np.intersect1d(protocol.index, rows)
    query = query[have_match(protocol.manifest, query, index)]
    if not query.size:
        return []
    searchers = {"student": student} if teacher is None else {"teacher": teacher, "student": student}
    results_of = {name: _search(protocol, embedded, query, index) for name, embedded in searchers.items()}
    is_hit_of = {name: _are_right(protocol, query, result_QK[:, 0]) for name, result_QK in results_of.items()}
    is_hit = is_hit_of["student"]
    is_interesting = is_hit != is_hit_of["teacher"] if "teacher" in is_hit_of else ~is_hit
    rng = np.random.default_rng(SEED)
    # Interesting queries first; where there are few, ordinary ones fill up.
    interesting = _draw(rng, np.flatnonzero(is_interesting), NUM_EXAMPLES // 2)
    ordinary = _draw(rng, np.flatnonzero(is_hit & ~is_interesting), NUM_EXAMPLES - len(interesting))
    return [
        Example(
            query=_picture(protocol, query[place]),
            results={
                name: [
                    _picture(protocol, row, is_right=bool(_are_right(protocol, query[[place]], np.array([row]))[0]))
                    for row in result_QK[place]
                    if row >= 0
                ]
                for name, result_QK in results_of.items()
            },
        )
        for place in [*ordinary, *interesting]
    ]


def _search(protocol: RetrievalProtocol, embedded: EmbeddedRows, query: Rows, index: Rows) -> IntArray:
    """The manifest rows found for each query (Q, K), best first, -1 where there are fewer."""
    query_ND, index_ND = embedded.take(query).embedding_ND, embedded.take(index).embedding_ND
    query_id, index_id = (protocol.manifest.image_number[rows] for rows in (query, index))
    position_QK, _ = top_k(query_ND, index_ND, min(NUM_SHOWN, len(index)), query_id=query_id, index_id=index_id)
    return np.where(position_QK >= 0, index[position_QK], -1)


def _are_right(protocol: RetrievalProtocol, query: Rows, result: IntArray) -> BoolArray:
    """Whether each query's result is of its class (Q,); -1 never is."""
    manifest, pairs = protocol.manifest, zip(query.tolist(), result.tolist(), strict=True)
    return np.array([row >= 0 and manifest.class_of(row) == manifest.class_of(one) for one, row in pairs], np.bool_)


def _draw(rng: np.random.Generator, places: IntArray, count: int) -> list[int]:
    return sorted(rng.choice(places, size=min(count, places.size), replace=False).tolist())


def _picture(protocol: RetrievalProtocol, row: int, *, is_right: bool | None = None) -> Picture:
    # Twice the size, so that `fit` has pixels to average.
    image = load_rgb(protocol.manifest.files[row], at_least_px=2 * THUMBNAIL_PX)
    encoded = io.BytesIO()
    ImageOps.fit(image, (THUMBNAIL_PX, THUMBNAIL_PX)).save(encoded, "JPEG", quality=JPEG_QUALITY)
    return Picture(jpeg=encoded.getvalue(), label=protocol.manifest.label[row] or "", is_right=is_right)


def as_sheet(examples: Sequence[Example]) -> Image.Image:
    """All examples on one picture: the query at the left, one line of results for each model."""
    models = list(examples[0].results)
    left = CELL_PX + 4 * CAPTION_PX  # the query and the models' names
    block = len(models) * (CELL_PX + CAPTION_PX) + GAP_PX
    sheet = Image.new("RGB", (2 * GAP_PX + left + NUM_SHOWN * CELL_PX, GAP_PX + len(examples) * block), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, example in enumerate(examples):
        top = GAP_PX + number * block
        sheet.paste(example.query.image, (GAP_PX, top))
        # About as many letters as fit below a picture.
        draw.text((GAP_PX, top + THUMBNAIL_PX + 4), example.query.label[:17], INK, font)
        for line, model in enumerate(models):
            y = top + line * (CELL_PX + CAPTION_PX)
            draw.text((GAP_PX + CELL_PX + 4, y + THUMBNAIL_PX // 2 - 8), model, INK, font)
            for rank, picture in enumerate(example.results[model]):
                x = GAP_PX + left + rank * CELL_PX
                colour = RIGHT if picture.is_right else WRONG
                sheet.paste(picture.image, (x, y))
                draw.rectangle((x, y, x + THUMBNAIL_PX, y + THUMBNAIL_PX), outline=colour, width=4)
                # In words too, for readers who cannot tell the colours apart.
                draw.text((x, y + THUMBNAIL_PX + 4), "right" if picture.is_right else "wrong", colour, font)
    return sheet
