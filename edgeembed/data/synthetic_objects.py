"""Draws the objects of the synthetic data set: five domains with three kinds of objects each.

A painter draws one object. `kind` and the generator `group` decide what sibling objects share, such as the outline;
the generator `rng` decides the details of the one object.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgeembed.data.drawing import (
    Box,
    Colour,
    Palette,
    Points,
    Rng,
    Sketch,
    cell,
    detail,
    glyph,
    hsv,
    tint,
    two_details,
)


def _mirrored(flank: Points) -> Points:
    """The whole outline from its right half, given as distances from the middle."""
    return [(0.5 + x, y) for x, y in flank] + [(0.5 - x, y) for x, y in reversed(flank)]


def _packaged_goods(sketch: Sketch, kind: int, group: Rng, rng: Rng, palette: Palette) -> None:
    half, top = group.uniform(0.24, 0.34), group.uniform(0.08, 0.2)
    left, right = 0.5 - half, 0.5 + half
    if kind == 0:  # carton, seen from its corner
        edge, back, up = right - 0.08, right + group.uniform(0.02, 0.1), top - 0.06
        sketch.polygon([(edge, top), (back, up), (back, 0.86), (edge, 0.95)], tint(palette.base, 0.6))
        sketch.polygon([(left, top), (left + back - edge, up), (back, up), (edge, top)], tint(palette.base, 1.3))
        sketch.panel((left, top, edge, 0.95), two_details(rng, palette))
        return
    if kind == 1:  # can
        sketch.ellipse((left, 0.83, right, 0.97), tint(palette.light, 0.7))
        sketch.rectangle((left, 0.12, right, 0.9), tint(palette.light, 0.8))
        sketch.ellipse((left, 0.05, right, 0.19), palette.light)
        sketch.ellipse((left + 0.04, 0.07, right - 0.04, 0.17), tint(palette.light, 0.7))
        label = (left, 0.15, right, 0.92)
    else:  # bottle
        neck = group.uniform(0.07, 0.11)
        sketch.polygon(_mirrored([(neck, 0.1), (neck, 0.2), (half, 0.36), (half, 0.96)]), palette.base)
        sketch.rectangle((0.48 - neck, 0.02, 0.52 + neck, 0.13), palette.dark, radius=0.02)
        label = (left, 0.38, right, 0.9)
    bow = [(left + half * step / 4, 0.05 * math.sin(math.pi * step / 8)) for step in range(9)]
    clip = [(x, label[1] + dy) for x, dy in bow] + [(x, label[3] - 0.05 + dy) for x, dy in reversed(bow)]
    sketch.panel(label, two_details(rng, palette), clip=clip)
    sketch.shade_round(half)


def _artwork(sketch: Sketch, kind: int, group: Rng, rng: Rng, palette: Palette) -> None:
    half_w, half_h = [(0.46, 0.36), (0.36, 0.47), (0.43, 0.43)][kind]
    frame, mat = group.uniform(0.04, 0.07), group.choice([0.0, 0.04])
    wood = hsv(group.uniform(0.05, 0.13), group.uniform(0.2, 0.8), group.uniform(0.2, 0.8))

    def inside(inset: float) -> Box:
        return 0.5 - half_w + inset, 0.5 - half_h + inset, 0.5 + half_w - inset, 0.5 + half_h - inset

    for inset, tone in ((0.0, 1.0), (0.35, 1.35), (0.7, 0.6)):
        sketch.rectangle(inside(inset * frame), tint(wood, tone))
    sketch.rectangle(inside(frame), palette.light)
    sketch.panel(inside(frame + mat), lambda canvas: (_landscape, _portrait, _abstract)[kind](canvas, rng, palette))


def _landscape(sketch: Sketch, rng: Rng, palette: Palette) -> None:
    sky, *inks = palette.inks(rng)
    sketch.rectangle((0, 0, 1, 1), sky)
    glyph(sketch, rng, (rng.uniform(0.15, 0.85), rng.uniform(0.2, 0.35)), 0.19, inks[1])
    sketch.polygon([(0, 1), *((step / 4, rng.uniform(0.25, 0.7)) for step in range(5)), (1, 1)], inks[0])
    sketch.polygon([(0, 1), (0, rng.uniform(0.5, 0.9)), (1, rng.uniform(0.5, 0.9)), (1, 1)], inks[2])
    for place in rng.permutation(4)[: int(rng.integers(1, 4))]:
        glyph(sketch, rng, (0.17 + 0.22 * place, rng.uniform(0.6, 0.82)), 0.17, (sky, inks[1])[int(rng.integers(2))])


def _portrait(sketch: Sketch, rng: Rng, palette: Palette) -> None:
    sketch.panel((0, 0, 1, 0.7), detail(rng, palette))
    skin = hsv(rng.uniform(0.03, 0.1), rng.uniform(0.2, 0.6), rng.uniform(0.4, 0.95))
    x, hair = rng.uniform(0.35, 0.65), (palette.dark, palette.accent, palette.light)[int(rng.integers(3))]
    sketch.ellipse((x - 0.27, 0.16, x + 0.27, rng.uniform(0.5, 0.85)), hair)
    body = [(0, 1), (x - 0.35, 0.72), (x - 0.1, 0.62), (x + 0.1, 0.62), (x + 0.35, 0.72), (1, 1)]
    sketch.panel((0, 0.6, 1, 1), detail(rng, palette), clip=body)
    sketch.ellipse((x - 0.19, 0.24, x + 0.19, 0.7), skin)
    if rng.integers(2):  # a hat, else an ornament
        sketch.polygon([(x - 0.28, 0.32), (x + 0.28, 0.32), (x + rng.uniform(-0.25, 0.25), 0.0)], palette.second)
    else:
        glyph(sketch, rng, (x, 0.17), 0.17, palette.second)
    for side in (-1, 1):
        sketch.disc(x + 0.08 * side, 0.43, 0.04, palette.dark)
    sketch.rectangle((x - 0.08, 0.55, x + 0.08, 0.6), palette.dark)


def _abstract(sketch: Sketch, rng: Rng, palette: Palette) -> None:
    x, y = (float(cut) for cut in rng.uniform(0.35, 0.65, size=2))
    for box in ((0, 0, x, y), (x, 0, 1, y), (0, y, x, 1), (x, y, 1, 1)):
        sketch.panel(box, detail(rng, palette))


def _facade(rng: Rng, palette: Palette, wall: Colour, rows: int, columns: int) -> Callable[[Sketch], None]:
    """A painter of rows of windows, with random shapes and gaps."""

    def paint(sketch: Sketch) -> None:
        sketch.rectangle((0, 0, 1, 1), wall)
        for row in range(rows):
            if rng.random() < 0.3:
                sketch.panel((0, row / rows, 1, (row + 1) / rows), detail(rng, palette))
                continue
            kind, ink = int(rng.integers(4)), (palette.dark, palette.light, palette.second)[int(rng.integers(3))]
            for column in np.flatnonzero(rng.random(columns) < 0.75):
                x, y = (column + 0.15) / columns, (row + 0.15) / rows
                cell(sketch, kind, (x, y, x + 0.7 / columns, y + 0.7 / rows), ink)

    return paint


def _landmarks(sketch: Sketch, kind: int, group: Rng, rng: Rng, palette: Palette) -> None:
    wall, roof = hsv(group.random(), group.uniform(0.1, 0.45), group.uniform(0.55, 0.95)), palette.base
    if kind == 0:  # clock tower
        half, eave = group.uniform(0.17, 0.23), group.uniform(0.22, 0.3)
        sketch.polygon([(0.46 - half, eave), (0.5, 0.0), (0.54 + half, eave)], roof)
        sketch.panel((0.5 - half, eave, 0.5 + half, 0.92), _facade(rng, palette, wall, 4, 2))
        sketch.rectangle((0.45 - half, 0.9, 0.55 + half, 0.98), tint(wall, 0.6))
        sketch.disc(0.5, eave + 0.12, 0.13, palette.light)
        glyph(sketch, rng, (0.5, eave + 0.12), 0.1, palette.dark)
    elif kind == 1:  # temple
        eave = group.uniform(0.28, 0.34)
        sketch.polygon([(0.02, eave), (0.5, 0.02), (0.98, eave)], roof)
        gable = [(0.2, eave), (0.5, 0.08), (0.8, eave)]
        sketch.panel((0.25, 0.1, 0.75, eave - 0.02), detail(rng, palette), clip=gable)
        sketch.panel((0.06, eave, 0.94, 0.5), detail(rng, palette))
        sketch.panel((0.06, 0.5, 0.94, 0.9), _facade(rng, palette, tint(wall, 0.6), 2, 5))
        for x in np.linspace(0.06, 0.86, int(rng.integers(3, 6))):
            sketch.rectangle((x, 0.5, x + 0.08, 0.9), wall)
        sketch.rectangle((0, 0.9, 1, 0.97), tint(wall, 0.8))
    else:  # castle
        width, eave = group.uniform(0.2, 0.26), group.uniform(0.22, 0.32)
        sketch.panel((0.12, 0.4, 0.88, 0.96), _facade(rng, palette, wall, 2, 4))
        for x in (0.02, 0.98 - width):
            sketch.panel((x, eave - 0.02, x + width, 0.96), _facade(rng, palette, tint(wall, 0.85), 3, 1))
            sketch.polygon([(x - 0.02, eave), (x + width / 2, eave - 0.22), (x + width + 0.02, eave)], roof)
        sketch.panel((0.36, 0.58, 0.64, 0.96), detail(rng, palette))
        sketch.rectangle((0.48, 0.24, 0.52, 0.42), roof)  # the pole of the emblem
        glyph(sketch, rng, (0.5, 0.24), 0.15, (palette.second, palette.accent)[int(rng.integers(2))])


def _apparel(sketch: Sketch, kind: int, group: Rng, rng: Rng, palette: Palette) -> None:
    hem, waist = group.uniform(0.9, 0.97), group.uniform(0.24, 0.3)
    flare = 0.46 if kind == 2 else waist
    reach = (0.48, 0.93, 0.36)[kind]  # where the sleeves of a tee, a sweater, a dress end
    sleeve = [(0.12, 0.06), (0.3, 0.14), (0.5, reach - 0.05), (0.36, reach), (waist - 0.06, 0.34)]
    for side in (-1, 1):
        cloth = palette.second if kind == 1 else tint(palette.base, 0.8)
        sketch.polygon([(0.5 + side * x, y) for x, y in sleeve], cloth)
    body = _mirrored([(0.12, 0.05), (0.29, 0.12), (waist, 0.4), (flare, hem)])
    sketch.polygon(body, palette.base)
    style = int(rng.integers(3))
    if style == 0:  # all over
        sketch.panel((0.04, 0.05, 0.96, hem), two_details(rng, palette), clip=body)
    else:  # a band at the hem or the chest, and a print
        band, top = (0.72, 0.22) if style == 1 else (0.12, 0.38)
        sketch.panel((0.04, band, 0.96, band + 0.22), detail(rng, palette), clip=body)
        sketch.panel((0.29, top, 0.71, top + 0.45), detail(rng, palette))
    sketch.ellipse((0.38, 0.0, 0.62, 0.14), tint(palette.base, 0.5))


def _toys(sketch: Sketch, kind: int, group: Rng, rng: Rng, palette: Palette) -> None:
    extra = group.uniform(0.0, 0.05)
    if kind == 0:  # robot
        for x in (0.06, 0.8):
            sketch.rectangle((x, 0.42, x + 0.14, 0.72), palette.second, radius=0.05)
        for x in (0.27, 0.55):
            sketch.rectangle((x, 0.8, x + 0.18, 0.98), palette.dark, radius=0.03)
        sketch.rectangle((0.2, 0.38, 0.8, 0.86), palette.base, radius=0.05)
        sketch.panel((0.26, 0.43, 0.74, 0.81), detail(rng, palette))
        sketch.rectangle((0.28 - extra, 0.1, 0.72 + extra, 0.37), palette.accent, radius=0.04)
        sketch.panel((0.33, 0.14, 0.67, 0.33), detail(rng, palette))
        glyph(sketch, rng, (0.5, 0.06), 0.07, palette.second)
    elif kind == 1:  # car
        cabin, top = rng.uniform(0.15, 0.35), 0.24 - extra
        sketch.polygon([(cabin - 0.1, 0.5), (cabin, top), (cabin + 0.4, top), (cabin + 0.55, 0.5)], palette.base)
        sketch.panel((cabin + 0.02, 0.28, cabin + 0.4, 0.48), detail(rng, palette))
        sketch.rectangle((0.02, 0.46, 0.98, 0.8), palette.base, radius=0.06)
        sketch.panel((0.06, 0.48, 0.94, 0.76), detail(rng, palette))
        for x in np.linspace(0.2, 0.8, int(rng.integers(2, 4))):
            sketch.disc(x, 0.8, 0.13, palette.dark)
            sketch.disc(x, 0.8, 0.07, palette.light)
    else:  # building blocks, the top row with gaps
        gaps = rng.permutation(3)[: int(rng.integers(3))]
        for place in (place for place in range(9) if place not in gaps):
            x, y = 0.05 + 0.3 * (place % 3), 0.08 + 0.3 * (place // 3)
            ground, ink, *_ = palette.inks(rng)
            sketch.rectangle((x, y, x + 0.29, y + 0.29), tint(ground, 0.7), radius=0.03)
            sketch.rectangle((x + 0.01, y + 0.01, x + 0.27, y + 0.27), ground, radius=0.03)
            if rng.random() < 0.6:
                glyph(sketch, rng, (x + 0.14, y + 0.14), 0.1, ink)


PAINTERS: dict[str, Callable[[Sketch, int, Rng, Rng, Palette], None]] = {
    "packaged_goods": _packaged_goods,
    "artwork": _artwork,
    "landmarks": _landmarks,
    "apparel": _apparel,
    "toys": _toys,
}
NUM_KINDS = 3  # kinds of objects in each domain: `kind` is 0, 1 or 2
