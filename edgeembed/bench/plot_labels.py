"""Places the names of points in a plot, so that names of files with similar figures do not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

FONT_POINTS = 8.5
WIDTH_PER_LETTER, LINE_HEIGHT = 0.6, 1.3  # of the font's size
MARKER_POINTS, LINE_POINTS = 11.0, 3.0
LEADER_FROM_POINTS = 14.0  # a line connects a label that is further up or down than this with its marker


@dataclass(frozen=True, kw_only=True)
class Place:
    """A label's offset from its marker in points; `align` is the share of its width that lies left of that point."""

    dx: float
    dy: float
    align: float

    def box(self, x: float, y: float, width: float, height: float, pixels_per_point: float) -> Bbox:
        left = x + self.dx * pixels_per_point - self.align * width
        return Bbox.from_bounds(left, y + self.dy * pixels_per_point - height / 2, width, height)


BESIDE = [
    Place(dx=8, dy=0, align=0),
    Place(dx=-8, dy=0, align=1),
    Place(dx=0, dy=-12, align=0.5),
    Place(dx=0, dy=12, align=0.5),
]
FURTHER = [
    Place(dx=dx, dy=dy, align=0 if dx > 0 else 1) for dy in (-13, 13, -25, 25, -37, 37, -49, 49) for dx in (10, -10)
]


def label_points(figure: Figure, axes: Axes, labels: Sequence[tuple[float, float, str]], *, ink: str) -> None:
    """Writes each (x, y, text) where it covers the fewest markers, lines and other labels and stays inside the axes."""
    # Fixes the layout, without which data coordinates have no pixels yet.
    figure.draw_without_rendering()
    # Pixels per point, of which an inch has 72.
    scale = figure.dpi / 72
    height, frame = FONT_POINTS * LINE_HEIGHT * scale, axes.get_window_extent()
    taken = [_extent(line, scale) for line in axes.lines if np.size(line.get_xdata())]
    # Sorted, because earlier labels get the better places.
    for x_data, y_data, text in sorted(labels):
        x, y = axes.transData.transform((x_data, y_data))
        width = len(text) * FONT_POINTS * WIDTH_PER_LETTER * scale
        boxes = [(place, place.box(x, y, width, height, scale)) for place in (*BESIDE, *FURTHER)]
        costs = [_cost(place, box, taken, frame) for place, box in boxes]
        place, box = boxes[costs.index(min(costs))]
        taken.append(box)
        _write(axes, (x_data, y_data), text, place, ink)


def _extent(line: Line2D, scale: float) -> Bbox:
    """The box that a marker or a straight line covers, in pixels."""
    corners = line.get_transform().transform(line.get_xydata())
    margin = (MARKER_POINTS if line.get_marker() not in ("None", None, "") else LINE_POINTS) / 2 * scale
    return Bbox([corners.min(axis=0) - margin, corners.max(axis=0) + margin])


def _cost(place: Place, box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> float:
    is_inside = box.x0 > frame.x0 and box.x1 < frame.x1 and box.y0 > frame.y0 and box.y1 < frame.y1
    overlaps = sum(bool(box.overlaps(other)) for other in taken)
    # Outside the axes is worse than any overlap; of equal places the nearest wins.
    return overlaps + 10 * (not is_inside) + 0.01 * (abs(place.dx) + abs(place.dy))


def _write(axes: Axes, point: tuple[float, float], text: str, place: Place, ink: str) -> None:
    leader: dict[str, Any] = {
        "arrowstyle": "-",
        "color": ink,
        "alpha": 0.4,
        "linewidth": 0.7,
        "shrinkA": 0,
        "shrinkB": 5,
    }
    axes.annotate(
        text,
        point,
        xytext=(place.dx, place.dy),
        textcoords="offset points",
        fontsize=FONT_POINTS,
        color=ink,
        va="center",
        parse_math=False,  # a $ in a name is a $
        ha="left" if place.align == 0 else "right" if place.align == 1 else "center",
        arrowprops=leader if abs(place.dy) > LEADER_FROM_POINTS else None,
    )
