"""A few queries with what teacher and student found, because a person believes pictures before percentages."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from edgeembed.arrays import BoolArray, IntArray
from edgeembed.bench.retrieval import Embedded
from edgeembed.data.manifest import Rows
from edgeembed.device.images import load_rgb
from edgeembed.evaluation import EvaluationSet, have_match
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
    """A query and its best results, by whoever searched ("teacher", "student")."""

    query: Picture
    results: dict[str, list[Picture]]


def choose_examples(
    evaluation: EvaluationSet, student: Embedded | None, teacher: Embedded | None, readable_N: BoolArray
) -> list[Example]:
    """Queries drawn with a fixed seed: half where the student's first result is right, half where the two differ.

    Without a teacher the other half are the student's misses. Each model searches its own index.
    """
    if student is None:
        return []
    rows = evaluation.rows[readable_N]
    query, index = np.intersect1d(evaluation.query, rows), np.intersect1d(evaluation.index, rows)
    query = query[have_match(evaluation.manifest, query, index)]
    if not query.size:
        return []
    searching = {"student": student} if teacher is None else {"teacher": teacher, "student": student}
    found = {name: _search(evaluation, embedded, query, index) for name, embedded in searching.items()}
    hit = {name: _is_right(evaluation, query, found_QK[:, 0]) for name, found_QK in found.items()}
    is_other = hit["student"] != hit["teacher"] if "teacher" in hit else ~hit["student"]
    rng = np.random.default_rng(SEED)
    chosen = _draw(rng, np.flatnonzero(is_other), NUM_EXAMPLES // 2)
    chosen = [*_draw(rng, np.flatnonzero(hit["student"] & ~is_other), NUM_EXAMPLES - len(chosen)), *chosen]
    return [
        Example(
            query=_picture(evaluation, query[place]),
            results={
                name: [
                    _picture(evaluation, row, is_right=bool(_is_right(evaluation, query[[place]], np.array([row]))[0]))
                    for row in found_QK[place]
                    if row >= 0
                ]
                for name, found_QK in found.items()
            },
        )
        for place in chosen
    ]


def _search(evaluation: EvaluationSet, embedded: Embedded, query: Rows, index: Rows) -> IntArray:
    """The manifest rows found for each query, best first, -1 where there are fewer."""
    query_ND = embedded.embedding_ND[np.searchsorted(evaluation.rows, query)]
    index_ND = embedded.embedding_ND[np.searchsorted(evaluation.rows, index)]
    query_id, index_id = (evaluation.manifest.image_number[rows] for rows in (query, index))
    position_QK, _ = top_k(query_ND, index_ND, min(NUM_SHOWN, len(index)), query_id=query_id, index_id=index_id)
    return np.where(position_QK >= 0, index[position_QK], -1)


def _is_right(evaluation: EvaluationSet, query: Rows, found: IntArray) -> BoolArray:
    manifest, pairs = evaluation.manifest, zip(query.tolist(), found.tolist(), strict=True)
    return np.array([row >= 0 and manifest.class_of(one) == manifest.class_of(row) for one, row in pairs], np.bool_)


def _draw(rng: np.random.Generator, places: IntArray, count: int) -> list[int]:
    return sorted(rng.choice(places, size=min(count, places.size), replace=False).tolist())


def _picture(evaluation: EvaluationSet, row: int, *, is_right: bool | None = None) -> Picture:
    image = load_rgb(evaluation.manifest.files[row], at_least_px=2 * THUMBNAIL_PX)
    encoded = io.BytesIO()
    ImageOps.fit(image, (THUMBNAIL_PX, THUMBNAIL_PX)).save(encoded, "JPEG", quality=JPEG_QUALITY)
    return Picture(jpeg=encoded.getvalue(), label=evaluation.manifest.label[row] or "", is_right=is_right)


def as_sheet(examples: Sequence[Example]) -> Image.Image:
    """All examples on one picture: the query at the left, what each searcher found in a line beside it."""
    searchers = list(examples[0].results)
    left = CELL_PX + 4 * CAPTION_PX  # the query and the searchers' names
    block = len(searchers) * (CELL_PX + CAPTION_PX) + GAP_PX
    sheet = Image.new("RGB", (2 * GAP_PX + left + NUM_SHOWN * CELL_PX, GAP_PX + len(examples) * block), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, example in enumerate(examples):
        top = GAP_PX + number * block
        sheet.paste(example.query.image, (GAP_PX, top))
        draw.text((GAP_PX, top + THUMBNAIL_PX + 4), example.query.label[:17], INK, font)
        for line, searcher in enumerate(searchers):
            y = top + line * (CELL_PX + CAPTION_PX)
            draw.text((GAP_PX + CELL_PX + 4, y + THUMBNAIL_PX // 2 - 8), searcher, INK, font)
            for rank, picture in enumerate(example.results[searcher]):
                x = GAP_PX + left + rank * CELL_PX
                colour = RIGHT if picture.is_right else WRONG
                sheet.paste(picture.image, (x, y))
                draw.rectangle((x, y, x + THUMBNAIL_PX, y + THUMBNAIL_PX), outline=colour, width=4)
                draw.text((x, y + THUMBNAIL_PX + 4), "right" if picture.is_right else "wrong", colour, font)
    return sheet
