"""What an instance of the synthetic data set looks like, before any camera sees it.

Five instances of a domain are siblings: they share outline, proportions and palette, and differ in what is printed,
painted or built on them. Those details are a tenth of the object or larger, so that they survive a 96 px picture.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

DOMAINS: tuple[str, ...] = ("packaged_goods", "artwork", "landmarks", "apparel", "toys")
NUM_SIBLINGS = 5

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
Points = Sequence[tuple[float, float]]
Rng = np.random.Generator

_LETTERS = (  # 3 x 5 cells, row by row; a font file would tie the pictures to a machine
    "010101111101101 111100100100111 111100110100111 101101111101101 101101110101101 100100100100111 "
    "111101101101101 111101111100100 111010010010010 101101010101101 111001010100111 101101010010010"
).split()
_GLYPHS: tuple[Points, ...] = (
    [(0, -1), (0.9, 0), (0.4, 0), (0.4, 1), (-0.4, 1), (-0.4, 0), (-0.9, 0)],  # arrow
    [(0.3, -1), (-0.7, 0.2), (0, 0.2), (-0.3, 1), (0.7, -0.25), (0.1, -0.25)],  # bolt
    [(0, -0.5), (0.4, -0.95), (0.9, -0.8), (1, -0.3), (0, 1), (-1, -0.3), (-0.9, -0.8), (-0.4, -0.95)],  # heart
    [(-1, -0.7), (-0.4, -0.1), (0.1, -0.6), (0.7, -0.4), (1, 0), (0.7, 0.4), (0.1, 0.6), (-0.4, 0.1), (-1, 0.7)],  # fish
    [(0, -1), (0.8, 0.35), (0.25, 0.35), (0.25, 1), (-0.25, 1), (-0.25, 0.35), (-0.8, 0.35)],  # tree
    [(-0.9, -0.9), (0.9, -0.9), (-0.9, 0.9), (0.9, 0.9)],  # hourglass
    [(-0.9, -0.9), (-0.2, -0.9), (-0.2, 0.3), (0.9, 0.3), (0.9, 0.9), (-0.9, 0.9)],  # angle
)


@dataclass(frozen=True, kw_only=True)
class Palette:
    """The five colours that siblings share."""

    base: Colour
    second: Colour
    accent: Colour
    light: Colour
    dark: Colour

    def inks(self, rng: Rng) -> list[Colour]:
        """A ground, then three colours to draw on it that stand out even when the light takes the hue away."""
        colours = [self.base, self.second, self.accent, self.light, self.dark]
        ground = colours.pop(int(rng.integers(5)))
        colours.sort(key=lambda ink: -abs(_luminance(ink) - _luminance(ground)))
        return [ground, *(colours[index] for index in rng.permutation(3))]


def _luminance(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """An 8-bit colour from a hue in turns and a saturation and value in 0..1."""
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue % 1.0, saturation, value))
    return red, green, blue


def _tint(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def _palette(rng: Rng) -> Palette:
    hue = rng.random()
    near = rng.choice([-1, 1]) * rng.uniform(0.1, 0.25)
    return Palette(
        base=hsv(hue, rng.uniform(0.4, 0.85), rng.uniform(0.5, 0.85)),
        second=hsv(hue + rng.uniform(0.3, 0.7), rng.uniform(0.5, 0.9), rng.uniform(0.5, 0.95)),
        accent=hsv(hue + near, rng.uniform(0.5, 0.9), rng.uniform(0.6, 1.0)),
        light=hsv(rng.random(), rng.uniform(0.0, 0.15), rng.uniform(0.9, 1.0)),
        dark=hsv(rng.random(), rng.uniform(0.2, 0.6), rng.uniform(0.1, 0.25)),
    )


class Sketch:
    """Draws in unit coordinates (x right, y down, 0..1), so that a design is the same at every picture size."""

    def __init__(self, size: tuple[int, int], fill: tuple[int, ...]) -> None:
        self.image = Image.new("RGBA", size, fill)
        self._draw = ImageDraw.Draw(self.image)

    def _pixels(self, points: Points) -> list[tuple[float, float]]:
        return [(x * self.image.width, y * self.image.height) for x, y in points]

    def polygon(self, points: Points, fill: Colour) -> None:
        self._draw.polygon(self._pixels(points), fill=(*fill, 255))

    def ellipse(self, box: Box, fill: Colour) -> None:
        self._draw.ellipse(self._pixels([box[:2], box[2:]]), fill=(*fill, 255))

    def disc(self, x: float, y: float, radius: float, fill: Colour) -> None:
        self.ellipse((x - radius, y - radius, x + radius, y + radius), fill)

    def rectangle(self, box: Box, fill: Colour, *, radius: float = 0.0) -> None:
        self._draw.rounded_rectangle(self._pixels([box[:2], box[2:]]), radius * self.image.width, fill=(*fill, 255))

    def panel(self, box: Box, paint: Callable[[Sketch], None], *, clip: Points | None = None) -> None:
        """Let `paint` fill a part of this sketch in unit coordinates of its own, kept inside the polygon `clip`."""
        (left, top), (right, bottom) = ((round(x), round(y)) for x, y in self._pixels([box[:2], box[2:]]))
        inner = Sketch((max(1, right - left), max(1, bottom - top)), (0, 0, 0, 255))
        paint(inner)
        mask = Image.new("L", self.image.size, 0 if clip else 255)
        if clip:
            ImageDraw.Draw(mask).polygon(self._pixels(clip), fill=255)
        self.image.paste(inner.image, (left, top), mask.crop((left, top, left + inner.image.width, top + inner.image.height)))

    def shade_round(self) -> None:
        """Darken towards both sides, as a cylinder does in light from the front."""
        across = np.linspace(-1, 1, self.image.width)
        light = np.broadcast_to(255 * (1 - 0.55 * np.abs(across) ** 2.5), self.image.size[::-1]).astype(np.uint8)
        alpha = self.image.getchannel("A")
        self.image = ImageChops.multiply(self.image, Image.merge("RGBA", [Image.fromarray(light)] * 3 + [alpha]))
        self.image.putalpha(alpha)


# Details: each fills a whole sketch, and is what tells an instance from its siblings.


def _glyph(sketch: Sketch, rng: Rng, centre: tuple[float, float], radius: float, fill: Colour) -> None:
    kind = int(rng.integers(len(_GLYPHS) + 5))
    if kind < len(_GLYPHS):
        points = _GLYPHS[kind]
    else:  # a regular polygon, or a star between the corners
        corners, is_star = int(rng.integers(3, 6)), bool(rng.integers(2))
        steps = 2 * corners if is_star else corners
        radii = [0.4 if is_star and step % 2 else 1.0 for step in range(steps)]
        points = [(r * math.sin(math.tau * i / steps), -r * math.cos(math.tau * i / steps)) for i, r in enumerate(radii)]
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][int(rng.integers(4))]
    x, y = centre
    sketch.polygon([(x + radius * (cos * u - sin * v), y + radius * (sin * u + cos * v)) for u, v in points], fill)


def _emblem(sketch: Sketch, rng: Rng, inks: list[Colour]) -> None:
    x, y = rng.uniform(0.4, 0.6, size=2)
    back = int(rng.integers(4))
    if back == 0:
        sketch.disc(x, y, 0.46, inks[2])
    elif back == 1:
        sketch.polygon([(x, y - 0.55), (x + 0.55, y), (x, y + 0.55), (x - 0.55, y)], inks[2])
    elif back == 2:
        sketch.polygon([(0, 0), (1, 0), (0, 1)] if rng.integers(2) else [(0, 0), (1, 0), (1, 1)], inks[2])
    _glyph(sketch, rng, (x, y), 0.36, inks[1] if back == 3 else inks[0])


def _mosaic(sketch: Sketch, rng: Rng, inks: list[Colour]) -> None:
    rows, columns = (int(count) for count in rng.integers(2, 4, size=2))
    for cell in range(rows * columns):
        x, y, w, h = (cell % columns) / columns, (cell // columns) / rows, 1 / columns, 1 / rows
        ink = inks[int(rng.integers(1, 4))]
        corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
        shape = int(rng.integers(6))
        if shape == 0:
            sketch.polygon(corners, ink)
        elif shape == 1:
            sketch.ellipse((x + 0.08 * w, y + 0.08 * h, x + 0.92 * w, y + 0.92 * h), ink)
        elif shape in (2, 3):
            corners.pop(int(rng.integers(4)))
            sketch.polygon(corners, ink)
        elif shape == 4:
            sketch.polygon([(x + w / 2, y), (x + w, y + h / 2), (x + w / 2, y + h), (x, y + h / 2)], ink)


def _stripes(sketch: Sketch, rng: Rng, inks: list[Colour]) -> None:
    lean = float(rng.choice([-0.7, 0.0, 0.7]))
    edges = np.sort(rng.uniform(-0.1, 1.0, size=3)) + np.array([0.0, 0.08, 0.16])
    is_level = bool(rng.integers(2))
    for edge, ink in zip(edges, inks[1:], strict=True):
        width = rng.uniform(0.1, 0.28)
        bar = [(edge - lean / 2, 0.0), (edge + width - lean / 2, 0.0), (edge + width + lean / 2, 1), (edge + lean / 2, 1)]
        sketch.polygon([(v, u) for u, v in bar] if is_level else bar, ink)


def _burst(sketch: Sketch, rng: Rng, inks: list[Colour]) -> None:
    x, y = rng.choice([0.0, 0.25, 0.5, 0.75, 1.0], size=2)
    rays, start = int(rng.integers(4, 9)), rng.random()
    for ray in range(rays):
        angles = [math.tau * (start + ray + part) / rays for part in (0.0, 0.5)]
        sketch.polygon([(x, y), *((x + 2 * math.cos(a), y + 2 * math.sin(a)) for a in angles)], inks[1])
    sketch.disc(x, y, rng.uniform(0.15, 0.4), inks[2])


def _letters(sketch: Sketch, rng: Rng, inks: list[Colour]) -> None:
    rows = int(rng.integers(1, 3))
    for row in range(rows):
        for column in range(2):
            cells = _LETTERS[int(rng.integers(len(_LETTERS)))]
            for cell in (index for index, mark in enumerate(cells) if mark == "1"):
                x = 0.08 + 0.47 * column + 0.125 * (cell % 3)
                y = (row + 0.1 + 0.16 * (cell // 3)) / rows
                sketch.rectangle((x, y, x + 0.13, y + 0.165 / rows), inks[1 + row])


def _rings(sketch: Sketch, rng: Rng, inks: list[Colour]) -> None:
    x, y = rng.uniform(0.15, 0.85, size=2)
    radii = np.sort(rng.uniform(0.1, 0.3, size=3).cumsum())[::-1]
    is_square = bool(rng.integers(2))
    for radius, ink in zip(radii, [inks[1], inks[0], inks[2]], strict=True):
        (sketch.rectangle if is_square else sketch.ellipse)((x - radius, y - radius, x + radius, y + radius), ink)


def _scatter(sketch: Sketch, rng: Rng, inks: list[Colour]) -> None:
    for place in rng.permutation(9)[: int(rng.integers(3, 6))]:
        centre = (1 / 6 + place % 3 / 3, 1 / 6 + place // 3 / 3)
        _glyph(sketch, rng, centre, 0.2, inks[int(rng.integers(1, 4))])


def _zigzag(sketch: Sketch, rng: Rng, inks: list[Colour]) -> None:
    teeth, depth = int(rng.integers(1, 4)), rng.uniform(0.25, 0.5)
    is_level = bool(rng.integers(2))
    for top, ink in zip((rng.uniform(-0.1, 0.2), rng.uniform(0.4, 0.6)), inks[1:3], strict=True):
        upper = [(step / (2 * teeth), top + depth * (step % 2)) for step in range(2 * teeth + 1)]
        band = upper + [(u, v + 0.22) for u, v in reversed(upper)]
        sketch.polygon(band if is_level else [(v, u) for u, v in band], ink)


_DETAILS = (_emblem, _mosaic, _stripes, _burst, _letters, _rings, _scatter, _zigzag, _mosaic, _emblem)


def _detail(rng: Rng, palette: Palette) -> Callable[[Sketch], None]:
    """A painter of one random detail, ground included; a long panel repeats it, as a frieze does."""

    def paint(sketch: Sketch) -> None:
        inks = palette.inks(rng)
        width, height = sketch.image.size
        columns, rows = max(1, round(width / height)), max(1, round(height / width))
        tile = Sketch((math.ceil(width / columns), math.ceil(height / rows)), (*inks[0], 255))
        _DETAILS[int(rng.integers(len(_DETAILS)))](tile, rng, inks)
        for cell in range(columns * rows):
            sketch.image.paste(tile.image, (cell % columns * tile.image.width, cell // columns * tile.image.height))

    return paint


def _two_details(rng: Rng, palette: Palette) -> Callable[[Sketch], None]:
    """A large detail beside a small one: a label and its strip."""

    def paint(sketch: Sketch) -> None:
        cut, is_first = rng.uniform(0.6, 0.72), bool(rng.integers(2))
        cut = cut if is_first else 1 - cut
        if rng.random() < 0.7:
            boxes: list[Box] = [(0, 0, 1, cut), (0, cut, 1, 1)]
        else:
            boxes = [(0, 0, cut, 1), (cut, 0, 1, 1)]
        for box in boxes:
            sketch.panel(box, _detail(rng, palette))

    return paint


# Domains: `group` decides what siblings share, `rng` what is an instance's own.


def _packaged_goods(sketch: Sketch, kind: int, group: Rng, rng: Rng, palette: Palette) -> None:
    half, top = group.uniform(0.24, 0.34), group.uniform(0.08, 0.2)
    left, right = 0.5 - half, 0.5 + half
    if kind == 0:  # carton, seen from its corner
        depth, edge = group.uniform(0.1, 0.18), right - 0.08
        sketch.polygon([(edge, top), (edge + depth, top - 0.06), (edge + depth, 0.86), (edge, 0.95)], _tint(palette.base, 0.6))
        sketch.polygon([(left, top), (left + depth, top - 0.06), (edge + depth, top - 0.06), (edge, top)], _tint(palette.base, 1.3))
        sketch.panel((left, top, edge, 0.95), _two_details(rng, palette))
        return
    if kind == 1:  # can
        sketch.ellipse((left, 0.83, right, 0.97), _tint(palette.light, 0.7))
        sketch.rectangle((left, 0.12, right, 0.9), _tint(palette.light, 0.8))
        sketch.ellipse((left, 0.05, right, 0.19), palette.light)
        sketch.ellipse((left + 0.04, 0.07, right - 0.04, 0.17), _tint(palette.light, 0.7))
        label = (left, 0.15, right, 0.92)
    else:  # bottle
        neck = group.uniform(0.07, 0.11)
        sketch.polygon([(0.5 - neck, 0.1), (0.5 + neck, 0.1), (0.5 + neck, 0.2), (right, 0.36), (right, 0.96), (left, 0.96),
                        (left, 0.36), (0.5 - neck, 0.2)], palette.base)  # fmt: skip
        sketch.rectangle((0.48 - neck, 0.02, 0.52 + neck, 0.13), palette.dark, radius=0.02)
        label = (left, 0.38, right, 0.9)
    bow = [(left + 2 * half * step / 8, 0.05 * math.sin(math.pi * step / 8)) for step in range(9)]
    clip = [(x, label[1] + dy) for x, dy in bow] + [(x, label[3] - 0.05 + dy) for x, dy in reversed(bow)]
    sketch.panel(label, _two_details(rng, palette), clip=clip)
    sketch.shade_round()


def _artwork(sketch: Sketch, kind: int, group: Rng, rng: Rng, palette: Palette) -> None:
    half_w, half_h = [(0.46, 0.36), (0.36, 0.47), (0.43, 0.43)][kind]
    frame, mat = group.uniform(0.04, 0.07), group.choice([0.0, 0.04])
    wood = hsv(group.uniform(0.05, 0.13), group.uniform(0.2, 0.8), group.uniform(0.2, 0.8))
    box = np.array([0.5 - half_w, 0.5 - half_h, 0.5 + half_w, 0.5 + half_h])
    for inset, paint in ((0.0, wood), (frame * 0.35, _tint(wood, 1.35)), (frame * 0.7, _tint(wood, 0.6)), (frame, palette.light)):
        sketch.rectangle(tuple(box + inset * np.array([1, 1, -1, -1])), paint)
    canvas = tuple(box + (frame + mat) * np.array([1, 1, -1, -1]))
    sketch.panel(canvas, lambda inner: (_landscape, _portrait, _abstract)[kind](inner, rng, palette))


def _landscape(sketch: Sketch, rng: Rng, palette: Palette) -> None:
    sky, *inks = palette.inks(rng)
    sketch.rectangle((0, 0, 1, 1), sky)
    _glyph(sketch, rng, (rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.35)), 0.15, inks[1])
    ridge = [(step / 4, rng.uniform(0.25, 0.7)) for step in range(5)]
    sketch.polygon([(0, 1), *ridge, (1, 1)], inks[0])
    shore = rng.uniform(0.6, 0.8)
    sketch.polygon([(0, 1), (0, shore + rng.uniform(-0.2, 0.2)), (1, shore + rng.uniform(-0.2, 0.2)), (1, 1)], inks[2])
    for place in rng.permutation(4)[: int(rng.integers(1, 4))]:
        _glyph(sketch, rng, (0.14 + 0.24 * place, rng.uniform(0.6, 0.85)), 0.14, (sky, inks[1])[int(rng.integers(2))])


def _portrait(sketch: Sketch, rng: Rng, palette: Palette) -> None:
    sketch.panel((0, 0, 1, 0.7), _detail(rng, palette))
    skin = hsv(rng.uniform(0.03, 0.1), rng.uniform(0.2, 0.6), rng.uniform(0.4, 0.95))
    x, hair = rng.uniform(0.35, 0.65), (palette.dark, palette.accent, palette.light)[int(rng.integers(3))]
    sketch.ellipse((x - 0.27, 0.16, x + 0.27, rng.uniform(0.5, 0.85)), hair)
    body = [(0, 1), (x - 0.35, 0.72), (x - 0.1, 0.62), (x + 0.1, 0.62), (x + 0.35, 0.72), (1, 1)]
    sketch.panel((0, 0.6, 1, 1), _detail(rng, palette), clip=body)
    sketch.ellipse((x - 0.19, 0.24, x + 0.19, 0.7), skin)
    hat = int(rng.integers(4))
    if hat == 0:
        sketch.rectangle((x - 0.34, 0.24, x + 0.34, 0.32), palette.second)
        sketch.rectangle((x - 0.2, 0.04, x + 0.2, 0.28), palette.second)
    elif hat == 1:
        sketch.polygon([(x - 0.28, 0.32), (x + 0.28, 0.32), (x + rng.uniform(-0.2, 0.2), 0.0)], palette.second)
    elif hat == 2:
        _glyph(sketch, rng, (x, 0.17), 0.17, palette.second)
    for side in (-1, 1):
        sketch.disc(x + 0.08 * side, 0.43, 0.04, palette.dark)
    sketch.rectangle((x - 0.08, 0.55, x + 0.08, 0.6), palette.dark)


def _abstract(sketch: Sketch, rng: Rng, palette: Palette) -> None:
    x, y = rng.uniform(0.35, 0.65, size=2)
    for box in ((0, 0, x, y), (x, 0, 1, y), (0, y, x, 1), (x, y, 1, 1)):
        sketch.panel(box, _detail(rng, palette))


def _facade(rng: Rng, palette: Palette, wall: Colour, rows: int, columns: int) -> Callable[[Sketch], None]:
    """Windows whose shapes and gaps are the building's own."""

    def paint(sketch: Sketch) -> None:
        sketch.rectangle((0, 0, 1, 1), wall)
        for row in range(rows):
            if rng.random() < 0.3:
                sketch.panel((0, row / rows, 1, (row + 1) / rows), _detail(rng, palette))
                continue
            shape, ink = int(rng.integers(4)), (palette.dark, palette.light, palette.second)[int(rng.integers(3))]
            for column in np.flatnonzero(rng.random(columns) < 0.75):
                x, y, w, h = (column + 0.15) / columns, (row + 0.15) / rows, 0.7 / columns, 0.7 / rows
                if shape == 0:
                    sketch.rectangle((x, y, x + w, y + h), ink)
                elif shape == 1:
                    sketch.ellipse((x, y, x + w, y + h), ink)
                elif shape == 2:
                    sketch.polygon([(x, y + h), (x, y + h / 2), (x + w / 2, y), (x + w, y + h / 2), (x + w, y + h)], ink)
                else:
                    sketch.polygon([(x + w / 2, y), (x + w, y + h / 2), (x + w / 2, y + h), (x, y + h / 2)], ink)

    return paint


def _landmarks(sketch: Sketch, kind: int, group: Rng, rng: Rng, palette: Palette) -> None:
    wall, roof = hsv(group.random(), group.uniform(0.1, 0.45), group.uniform(0.55, 0.95)), palette.base
    if kind == 0:  # clock tower
        half, eave = group.uniform(0.17, 0.23), group.uniform(0.22, 0.3)
        sketch.polygon([(0.5 - half - 0.04, eave), (0.5, 0.0), (0.5 + half + 0.04, eave)], roof)
        sketch.panel((0.5 - half, eave, 0.5 + half, 0.92), _facade(rng, palette, wall, 4, 2))
        sketch.rectangle((0.45 - half, 0.9, 0.55 + half, 0.98), _tint(wall, 0.6))
        sketch.disc(0.5, eave + 0.12, 0.13, palette.light)
        _glyph(sketch, rng, (0.5, eave + 0.12), 0.1, palette.dark)
    elif kind == 1:  # temple
        eave, columns = group.uniform(0.28, 0.34), int(rng.integers(3, 6))
        gable = [(0.02, eave), (0.5, 0.06), (0.98, eave)]
        sketch.polygon(gable, roof)
        sketch.panel((0.25, 0.16, 0.75, eave - 0.03), _detail(rng, palette), clip=[(0.2, eave), (0.5, 0.12), (0.8, eave)])
        sketch.panel((0.06, eave, 0.94, 0.5), _detail(rng, palette))
        sketch.panel((0.06, 0.5, 0.94, 0.9), _facade(rng, palette, _tint(wall, 0.6), 2, 5))
        for column in range(columns):
            x = 0.06 + 0.8 * column / (columns - 1)
            sketch.rectangle((x, 0.5, x + 0.08, 0.9), wall)
        sketch.rectangle((0, 0.9, 1, 0.97), _tint(wall, 0.8))
    else:  # castle
        width, height = group.uniform(0.2, 0.26), group.uniform(0.1, 0.2)
        sketch.panel((0.12, 0.4, 0.88, 0.96), _facade(rng, palette, wall, 2, 4))
        for x in (0.02, 0.98 - width):
            sketch.panel((x, height + 0.1, x + width, 0.96), _facade(rng, palette, _tint(wall, 0.85), 3, 1))
            sketch.polygon([(x - 0.02, height + 0.12), (x + width / 2, height - 0.1), (x + width + 0.02, height + 0.12)], roof)
        sketch.panel((0.36, 0.58, 0.64, 0.96), _detail(rng, palette))
        _glyph(sketch, rng, (0.5, 0.24), 0.15, (palette.second, palette.accent)[int(rng.integers(2))])


def _apparel(sketch: Sketch, kind: int, group: Rng, rng: Rng, palette: Palette) -> None:
    hem, waist = group.uniform(0.9, 0.97), group.uniform(0.24, 0.3)
    reach = (0.48, 0.93, 0.36)[kind]  # where the sleeves end: tee, sweater, dress
    flare = 0.46 if kind == 2 else waist
    for side in (-1, 1):
        sleeve = [(0.12, 0.06), (0.3, 0.14), (0.5, reach - 0.05), (0.36, reach), (waist - 0.06, 0.34)]
        sketch.polygon([(0.5 + side * x, y) for x, y in sleeve], palette.second if kind == 1 else _tint(palette.base, 0.8))
    right = [(0.12, 0.05), (0.29, 0.12), (waist, 0.4), (flare, hem)]
    body = [(0.5 + x, y) for x, y in right] + [(0.5 - x, y) for x, y in reversed(right)]
    sketch.polygon(body, palette.base)
    style = int(rng.integers(3))
    if style == 0:  # all over
        sketch.panel((0.04, 0.05, 0.96, hem), _two_details(rng, palette), clip=body)
    else:  # a print, and a band at the hem or the chest
        band = 0.72 if style == 1 else 0.12
        sketch.panel((0.04, band, 0.96, band + 0.22), _detail(rng, palette), clip=body)
        top = 0.22 if style == 1 else 0.38
        sketch.panel((0.29, top, 0.71, top + 0.45), _detail(rng, palette))
    sketch.ellipse((0.38, 0.0, 0.62, 0.14), _tint(palette.base, 0.5))


def _toys(sketch: Sketch, kind: int, group: Rng, rng: Rng, palette: Palette) -> None:
    size = group.uniform(0.0, 0.05)
    if kind == 0:  # robot
        for x in (0.06, 0.8):
            sketch.rectangle((x, 0.42, x + 0.14, 0.72), palette.second, radius=0.05)
        for x in (0.27, 0.55):
            sketch.rectangle((x, 0.8, x + 0.18, 0.98), palette.dark, radius=0.03)
        sketch.rectangle((0.2, 0.38, 0.8, 0.86), palette.base, radius=0.05)
        sketch.panel((0.26, 0.43, 0.74, 0.81), _detail(rng, palette))
        sketch.rectangle((0.28 - size, 0.1, 0.72 + size, 0.37), palette.accent, radius=0.04)
        sketch.panel((0.33, 0.14, 0.67, 0.33), _detail(rng, palette))
        _glyph(sketch, rng, (0.5, 0.06), 0.07, palette.second)
    elif kind == 1:  # car
        cabin = rng.uniform(0.15, 0.35)
        roof = [(cabin - 0.1, 0.5), (cabin, 0.24 - size), (cabin + 0.4, 0.24 - size), (cabin + 0.55, 0.5)]
        sketch.polygon(roof, palette.base)
        sketch.panel((cabin + 0.02, 0.28, cabin + 0.4, 0.48), _detail(rng, palette))
        sketch.rectangle((0.02, 0.46, 0.98, 0.8), palette.base, radius=0.06)
        sketch.panel((0.06, 0.48, 0.94, 0.76), _detail(rng, palette))
        shape = int(rng.integers(2, 4))
        for x in np.linspace(0.2, 0.8, shape):
            sketch.disc(x, 0.8, 0.13, palette.dark)
            sketch.disc(x, 0.8, 0.07, palette.light)
    else:  # building blocks
        gaps = rng.permutation(3)[: int(rng.integers(3))]  # in the top row
        for cell in (cell for cell in range(9) if cell not in gaps):
            x, y = 0.05 + 0.3 * (cell % 3), 0.08 + 0.3 * (cell // 3)
            ground, *inks = palette.inks(rng)
            sketch.rectangle((x, y, x + 0.29, y + 0.29), _tint(ground, 0.7), radius=0.03)
            sketch.rectangle((x + 0.01, y + 0.01, x + 0.27, y + 0.27), ground, radius=0.03)
            if rng.random() < 0.6:
                _glyph(sketch, rng, (x + 0.14, y + 0.14), 0.1, inks[0])


_PAINTERS = (_packaged_goods, _artwork, _landmarks, _apparel, _toys)  # in the order of DOMAINS
_NUM_KINDS = 3
_SIBLINGS_STREAM, _INSTANCE_STREAM, _KIND_STREAM = 1, 2, 3  # keep the random streams of one seed apart


def sibling_group(instance: int) -> tuple[int, int]:
    """The place of its domain in DOMAINS and the number of its group there: equal for siblings only."""
    return instance % len(DOMAINS), instance // (len(DOMAINS) * NUM_SIBLINGS)


@lru_cache(maxsize=8)
def render_design(*, seed: int, instance: int, size_px: int) -> Image.Image:
    """The object alone, cut to its outline: RGBA, its longer side `size_px`. Shared, so not to be drawn on."""
    domain, group = sibling_group(instance)
    shared = np.random.default_rng(np.random.SeedSequence((seed, _SIBLINGS_STREAM, domain, group)))
    own = np.random.default_rng(np.random.SeedSequence((seed, _INSTANCE_STREAM, instance)))
    palette = _palette(shared)
    first_kind = int(np.random.default_rng(np.random.SeedSequence((seed, _KIND_STREAM, domain))).integers(_NUM_KINDS))
    sketch = Sketch((2 * size_px, 2 * size_px), (*palette.base, 0))
    _PAINTERS[domain](sketch, (first_kind + group) % _NUM_KINDS, shared, own, palette)
    image = sketch.image.crop(sketch.image.getchannel("A").getbbox())
    scale = size_px / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
