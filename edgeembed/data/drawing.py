"""Drawing primitives, random patterns and a simulated camera for the synthetic data set.

A detail (a random pattern) takes at least a tenth of its panel, so that it is visible in a 96 px image. The camera
varies viewpoint, light, background, focus and noise, so that neither mean colour nor a thumbnail identifies an
instance.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from edgeembed.arrays import UInt8Array

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
Points = Sequence[tuple[float, float]]
Rng = np.random.Generator

# Capital letters as 3 x 5 bitmaps, one octal digit for each row. Fonts would give other pixels on other machines.
_LETTERS = ("25755", "74447", "74647", "55755", "55655", "44447", "75555", "75744", "72222", "55255", "71247", "55222")
_GLYPHS: tuple[Points, ...] = (
    ((0, -1), (0.9, 0), (0.4, 0), (0.4, 1), (-0.4, 1), (-0.4, 0), (-0.9, 0)),  # arrow
    ((0.3, -1), (-0.7, 0.2), (0, 0.2), (-0.3, 1), (0.7, -0.25), (0.1, -0.25)),  # bolt
    ((0, -0.5), (0.4, -0.95), (0.9, -0.8), (1, -0.3), (0, 1), (-1, -0.3), (-0.9, -0.8), (-0.4, -0.95)),  # heart
    ((-1, -0.7), (-0.4, 0), (0.1, -0.6), (0.7, -0.4), (1, 0), (0.7, 0.4), (0.1, 0.6), (-0.4, 0), (-1, 0.7)),  # fish
    ((0, -1), (0.8, 0.35), (0.25, 0.35), (0.25, 1), (-0.25, 1), (-0.25, 0.35), (-0.8, 0.35)),  # tree
    ((-0.9, -0.9), (0.9, -0.9), (-0.9, 0.9), (0.9, 0.9)),  # hourglass
    ((-0.9, -0.9), (-0.2, -0.9), (-0.2, 0.3), (0.9, 0.3), (0.9, 0.9), (-0.9, 0.9)),  # angle
)
_CELLS: tuple[Points, ...] = (  # shapes of mosaic tiles; the first four are also shapes of windows
    ((0, 0), (1, 0), (1, 1), (0, 1)),
    ((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)),
    ((0, 1), (0, 0.4), (0.5, 0), (1, 0.4), (1, 1)),
    ((0.25, 0), (0.75, 0), (1, 0.3), (1, 0.7), (0.75, 1), (0.25, 1), (0, 0.7), (0, 0.3)),
    ((0, 0), (1, 0), (0, 1)),
    ((0, 0), (1, 0), (1, 1)),
)


@dataclass(frozen=True, kw_only=True)
class Palette:
    """Five colours, shared by sibling objects."""

    base: Colour
    second: Colour
    accent: Colour
    light: Colour
    dark: Colour

    def inks(self, rng: Rng) -> list[Colour]:
        """A background colour, then three colours that differ from it in brightness, in random order."""
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


def tint(colour: Colour, factor: float) -> Colour:
    """The colour, darker (factor below 1) or brighter (above 1)."""
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def random_palette(rng: Rng) -> Palette:
    """Five random colours: three saturated ones, a light and a dark one."""
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
    """A canvas with unit coordinates (x right, y down, 0..1), so that a drawing is the same at every image size."""

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

    def panel(self, box: Box, paint: Callable[[Sketch], None], *, clip: Points = ()) -> None:
        """Lets `paint` fill the rectangle `box`, in unit coordinates of its own, clipped to the polygon `clip`."""
        (left, top), (right, bottom) = ((round(x), round(y)) for x, y in self._pixels([box[:2], box[2:]]))
        inner = Sketch((max(1, right - left), max(1, bottom - top)), (0, 0, 0, 255))
        paint(inner)
        mask = Image.new("L", inner.image.size, 0 if clip else 255)
        if clip:
            ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in self._pixels(clip)], fill=255)
        self.image.paste(inner.image, (left, top), mask)

    def shade_round(self, half_width: float) -> None:
        """Darkens the drawing towards its left and right sides, so that it looks like an upright cylinder."""
        across = np.abs(np.linspace(-0.5, 0.5, self.image.width) / half_width).clip(0, 1)
        dark = Image.fromarray(np.tile(120 * across**2.5, (self.image.height, 1)).astype(np.uint8))
        self.image.paste((0, 0, 0, 255), (0, 0), ImageChops.multiply(dark, self.image.getchannel("A")))


# Details: random patterns that fill a whole sketch. Sibling objects differ only in their details.


def glyph(sketch: Sketch, rng: Rng, centre: tuple[float, float], radius: float, fill: Colour) -> None:
    """Draws a random symbol, regular polygon or star, turned by a multiple of 90 degrees."""
    kind = int(rng.integers(len(_GLYPHS) + 5))
    if kind < len(_GLYPHS):
        points = _GLYPHS[kind]
    else:  # a regular polygon, or a star between the corners
        corners, is_star = int(rng.integers(3, 6)), bool(rng.integers(2))
        steps = 2 * corners if is_star else corners
        polar = [(0.4 if is_star and step % 2 else 1.0, math.tau * step / steps) for step in range(steps)]
        points = [(r * math.sin(angle), -r * math.cos(angle)) for r, angle in polar]
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
        sketch.polygon(_CELLS[4 + int(rng.integers(2))], inks[2])
    glyph(sketch, rng, (x, y), 0.36, inks[1] if back == 3 else inks[0])


def cell(sketch: Sketch, kind: int, box: Box, fill: Colour) -> None:
    """Draws one of the shapes of `_CELLS`, scaled to a box."""
    left, top, right, bottom = box
    sketch.polygon([(left + u * (right - left), top + v * (bottom - top)) for u, v in _CELLS[kind]], fill)


def _mosaic(sketch: Sketch, rng: Rng, inks: list[Colour]) -> None:
    rows, columns = (int(count) for count in rng.integers(2, 4, size=2))
    for place in range(rows * columns):
        x, y = place % columns, place // columns
        kind, ink = int(rng.integers(len(_CELLS) + 1)), inks[int(rng.integers(1, 4))]
        if kind < len(_CELLS):  # else the background stays visible
            cell(sketch, kind, (x / columns, y / rows, (x + 1) / columns, (y + 1) / rows), ink)


def _stripes(sketch: Sketch, rng: Rng, inks: list[Colour]) -> None:
    lean = float(rng.choice([-0.7, 0.0, 0.7]))
    edges = np.sort(rng.uniform(-0.1, 1.0, size=3)) + np.array([0.0, 0.08, 0.16])
    is_level = bool(rng.integers(2))
    for edge, ink in zip(edges, inks[1:], strict=True):
        top, bottom, width = edge - lean / 2, edge + lean / 2, rng.uniform(0.1, 0.28)
        bar = [(top, 0), (top + width, 0), (bottom + width, 1), (bottom, 1)]
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
    for place in range(2 * rows):
        row, column = place // 2, place % 2
        letter = _LETTERS[int(rng.integers(len(_LETTERS)))]
        for bit in (bit for bit in range(15) if int(letter[bit // 3]) & 4 >> bit % 3):
            x, y = 0.08 + 0.47 * column + 0.125 * (bit % 3), (row + 0.1 + 0.16 * (bit // 3)) / rows
            sketch.rectangle((x, y, x + 0.13, y + 0.165 / rows), inks[1 + row])


def _rings(sketch: Sketch, rng: Rng, inks: list[Colour]) -> None:
    x, y = rng.uniform(0.15, 0.85, size=2)
    radii = rng.uniform(0.1, 0.3, size=3).cumsum()[::-1]
    is_square = bool(rng.integers(2))
    for radius, ink in zip(radii, [inks[1], inks[0], inks[2]], strict=True):
        (sketch.rectangle if is_square else sketch.ellipse)((x - radius, y - radius, x + radius, y + radius), ink)


def _scatter(sketch: Sketch, rng: Rng, inks: list[Colour]) -> None:
    for place in rng.permutation(9)[: int(rng.integers(3, 6))]:
        centre = (1 / 6 + place % 3 / 3, 1 / 6 + place // 3 / 3)
        glyph(sketch, rng, centre, 0.2, inks[int(rng.integers(1, 4))])


def _zigzag(sketch: Sketch, rng: Rng, inks: list[Colour]) -> None:
    teeth, depth = int(rng.integers(1, 4)), rng.uniform(0.25, 0.5)
    is_level = bool(rng.integers(2))
    for top, ink in zip((rng.uniform(-0.1, 0.2), rng.uniform(0.4, 0.6)), inks[1:3], strict=True):
        upper = [(step / (2 * teeth), top + depth * (step % 2)) for step in range(2 * teeth + 1)]
        band = upper + [(u, v + 0.22) for u, v in reversed(upper)]
        sketch.polygon(band if is_level else [(v, u) for u, v in band], ink)


_DETAILS = (_emblem, _emblem, _mosaic, _mosaic, _stripes, _burst, _letters, _rings, _scatter, _zigzag)


def detail(rng: Rng, palette: Palette) -> Callable[[Sketch], None]:
    """A painter of one random detail with its background; in a long panel the detail is repeated."""

    def paint(sketch: Sketch) -> None:
        inks = palette.inks(rng)
        width, height = sketch.image.size
        columns, rows = max(1, round(width / height)), max(1, round(height / width))
        tile = Sketch((math.ceil(width / columns), math.ceil(height / rows)), (*inks[0], 255))
        _DETAILS[int(rng.integers(len(_DETAILS)))](tile, rng, inks)
        for place in range(columns * rows):
            sketch.image.paste(tile.image, (place % columns * tile.image.width, place // columns * tile.image.height))

    return paint


def two_details(rng: Rng, palette: Palette) -> Callable[[Sketch], None]:
    """A painter of a large detail beside a small one."""

    def paint(sketch: Sketch) -> None:
        cut = rng.uniform(0.6, 0.72) if rng.integers(2) else rng.uniform(0.28, 0.4)
        is_stacked = rng.random() < 0.7
        sketch.panel((0, 0, 1, cut) if is_stacked else (0, 0, cut, 1), detail(rng, palette))
        sketch.panel((0, cut, 1, 1) if is_stacked else (cut, 0, 1, 1), detail(rng, palette))

    return paint


# The camera: its random numbers do not depend on the object.


def photograph(rng: Rng, design: Image.Image, size_px: int) -> Image.Image:
    """A square RGB photograph of an RGBA drawing, with random viewpoint, background and light."""
    picture = _background(rng, size_px)
    thing = _in_perspective(rng, design, size_px)
    _cast_shadow(rng, picture, thing)
    picture.paste(thing, (0, 0), thing)
    if rng.random() < 0.5:
        _occlude(rng, picture)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 1.3) * size_px / 224))
    return Image.fromarray(_exposed(rng, np.asarray(picture)))


def _background(rng: Rng, size_px: int) -> Image.Image:
    """A random blurred background (blotches, boards, clutter or lights): drawn small and enlarged."""
    small = 56
    kind = int(rng.integers(4))
    colours = [hsv(rng.random(), rng.uniform(0.0, 0.7), rng.uniform(0.15, 1.0)) for _ in range(8)]
    if kind == 0:  # soft blotches
        blotches = rng.uniform(0, 255, size=(int(rng.integers(2, 9)), int(rng.integers(2, 9)), 3))
        picture = Image.fromarray(blotches.astype(np.uint8)).resize((small, small), Image.Resampling.BICUBIC)
        picture = Image.blend(picture, Image.new("RGB", picture.size, colours[0]), rng.uniform(0.2, 0.8))
    else:  # a wall above a table
        picture = Image.new("RGB", (small, small), colours[0])
        draw = ImageDraw.Draw(picture)
        horizon = min(1.0, rng.uniform(0.3, 1.2)) * small
        draw.rectangle((0, horizon, small, small), fill=colours[1])
        if kind == 1:  # boards or bricks
            step, lean = int(rng.integers(4, 14)), rng.uniform(-20, 20)
            for offset in range(-small, 2 * small, step):
                draw.line((offset, 0, offset + lean, small), fill=colours[2], width=int(rng.integers(1, 4)))
        else:  # other objects, or lights out of focus
            for _ in range(int(rng.integers(4, 20))):
                x, y = rng.uniform(-5, small, size=2)
                w, h = rng.uniform(4, 24, size=2)
                shape = draw.ellipse if kind == 2 else draw.rectangle
                shape((x, y, x + w, y + h), fill=colours[int(rng.integers(8))])
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 2.0)))
    return picture.resize((size_px, size_px), Image.Resampling.BILINEAR)


def _in_perspective(rng: Rng, design: Image.Image, size_px: int) -> Image.Image:
    """The object in perspective, rotated by up to about 30 degrees, filling most of an RGBA frame."""
    yaw, pitch, roll = np.radians(rng.normal(scale=(13, 9, 9)).clip((-30, -22, -20), (30, 22, 20)))
    extent = np.array([design.width, design.height]) / max(design.size)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * extent
    x = corners[:, 0] * np.cos(yaw)
    depth = 3.5 + corners[:, 0] * np.sin(yaw) + corners[:, 1] * np.sin(pitch)
    flat = np.stack([x, corners[:, 1] * np.cos(pitch)], axis=1) / depth[:, None]
    turn = np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    seen = flat @ turn
    low, high = seen.min(axis=0), seen.max(axis=0)
    scale = rng.uniform(0.7, 0.95) * size_px / (high - low).max()
    room = size_px - (high - low) * scale
    quad = (seen - low) * scale + rng.uniform(0.1, 0.9, size=2) * room
    source = (corners / extent + 1) / 2 * design.size
    return design.transform(
        (size_px, size_px), Image.Transform.PERSPECTIVE, _homography(quad, source), Image.Resampling.BICUBIC
    )


def _homography(from_points: npt.NDArray[np.float64], to_points: npt.NDArray[np.float64]) -> list[float]:
    """The eight coefficients of Pillow's PERSPECTIVE transform that map four output points to four input points."""
    rows = []
    for (x, y), (u, v) in zip(from_points, to_points, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return [float(value) for value in np.linalg.solve(np.array(rows), to_points.ravel())]


def _cast_shadow(rng: Rng, picture: Image.Image, thing: Image.Image) -> None:
    small = 56
    soft = thing.getchannel("A").resize((small, small)).filter(ImageFilter.GaussianBlur(2))
    shadow = soft.point([round(level * 0.6) for level in range(256)]).resize(picture.size)
    offset = tuple(round(value * picture.width) for value in rng.uniform((-0.06, 0.0), (0.06, 0.06)))
    picture.paste((0, 0, 0), (offset[0], offset[1]), shadow)


def _occlude(rng: Rng, picture: Image.Image) -> None:
    """Draws a post or an ellipse in front of the object, which hides a small part of it."""
    size = picture.width
    draw = ImageDraw.Draw(picture)
    colour = hsv(rng.random(), rng.uniform(0.0, 0.6), rng.uniform(0.1, 0.9))
    if rng.random() < 0.35:  # a post
        x, lean, width = rng.uniform(0.1, 0.9) * size, rng.uniform(-0.3, 0.3) * size, rng.uniform(0.03, 0.08) * size
        draw.polygon([(x, -1), (x + width, -1), (x + lean + width, size), (x + lean, size)], fill=colour)
        return
    angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.46, 0.6) * size
    x, y = size / 2 + reach * np.cos(angle), size / 2 + reach * np.sin(angle)
    w, h = rng.uniform(0.1, 0.25, size=2) * size
    draw.ellipse((x - w, y - h, x + w, y + h), fill=colour)


def _exposed(rng: Rng, picture: UInt8Array) -> UInt8Array:
    """Applies uneven and coloured light, exposure, contrast and sensor noise."""
    size = len(picture)
    direction = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    uneven = np.cos(direction) * ramp[None, :, None] + np.sin(direction) * ramp[:, None, None]
    gain = rng.uniform(0.75, 1.2, size=3) * rng.uniform(0.7, 1.25)
    lit = picture * ((1 + rng.uniform(0, 0.35) * uneven) * gain).astype(np.float32)
    contrast, grey = np.float32(rng.uniform(0.75, 1.2)), lit.mean()
    grain = rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(rng.uniform(0, 10))
    exposed: UInt8Array = ((lit - grey) * contrast + grey + grain).clip(0, 255).astype(np.uint8)
    return exposed
