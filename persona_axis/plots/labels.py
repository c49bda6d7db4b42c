"""Labels for the points of a scatter plot, placed so that none overlaps another, a marker or a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

_ANGLES = tuple(math.radians(angle) for angle in (0, 180, 90, 270, 45, 135, 315, 225, 22, 158, 202, 338))
_NEAR, _FAR = (5.0, 9.0), (16.0, 24.0, 34.0, 46.0)  # gaps between a point and its label, in 1/72 inch


def place_labels(
    ax: Axes,
    points: Sequence[tuple[float, float]],
    labels: Sequence[tuple[int, str]],
    *,
    size: float = 7.5,
    large: int | None = None,
    farthest: float = 46.0,
    most: int | None = None,
) -> list[str]:
    """Write `labels`, (index into `points`, text) in order of importance, and return those that found room.

    Greedy: each label takes the first of its places, near ones first, that touches nothing; one that stands
    off gets a line to its point. One that finds no place is left out rather than drawn over something. The
    point `large` has a big marker and a bold label. None stands farther than `farthest` (1/72 inch) from its point,
    and no more than `most` are written. The limits and layout of `ax` must be final.
    """
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    scale = figure.dpi / 72
    pixels = np.array([ax.transData.transform(point) for point in points])
    reach = np.array([(8.0 if index == large else 3.0) * scale for index in range(len(points))])
    room = _Room(pixels, reach, ax.get_window_extent(renderer), scale, farthest)
    placed: list[str] = []
    for index, text in labels:
        if most is not None and len(placed) >= most:
            break
        note = ax.annotate(
            text,
            points[index],
            xytext=(0, 0),
            textcoords="offset points",
            parse_math=False,
            fontsize=size,
            ha="center",
            va="center",
            zorder=6,
            fontweight="bold" if index == large else "normal",
        )
        extent = note.get_window_extent(renderer)
        place = room.take(index, extent.width + 3 * scale, extent.height + scale)
        if place is None:
            note.remove()
            continue
        box, line = place
        centre = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
        note.set_position(tuple((centre - pixels[index]) / scale))
        if line is not None:
            ends = ax.transData.inverted().transform(line)
            ax.plot(*ends.T, color="0.35", lw=0.5, zorder=2.5, scalex=False, scaley=False)
        placed.append(text)
    return placed


@dataclass
class _Room:
    """What is taken so far; everything in pixels."""

    points: NDArray[np.float64]  # [n, 2]
    reach: NDArray[np.float64]  # [n], half the size of each marker
    frame: Bbox
    scale: float
    farthest: float
    boxes: list[Bbox] = field(default_factory=list)
    lines: list[NDArray[np.float64]] = field(default_factory=list)  # each [2, 2]

    def take(self, index: int, width: float, height: float) -> tuple[Bbox, NDArray[np.float64] | None] | None:
        """The first free place for a box of that size at point `index`, with its line if it needs one."""
        point = self.points[index]
        for gap in (gap for gap in (*_NEAR, *_FAR) if gap <= self.farthest):
            for angle in _ANGLES:
                way = np.array([math.cos(angle), math.sin(angle)])
                # the box's edge, not its centre, keeps the gap
                away = (gap * self.scale + max(0.0, self.reach[index] - 3 * self.scale)) * way
                centre = point + away + way * (width / 2, height / 2)
                box = Bbox.from_bounds(centre[0] - width / 2, centre[1] - height / 2, width, height)
                if not self._free(box):
                    continue
                gaps = self._gaps(box)
                mine = gaps[index]
                gaps[index] = np.inf
                if gap in _NEAR and mine < 0.75 * gaps.min():
                    self.boxes.append(box)
                    return box, None
                line = np.array([point, np.clip(point, (box.x0, box.y0), (box.x1, box.y1))])
                if gap not in _NEAR and not any(self._crosses(line, other) for other in self.boxes):
                    self.boxes.append(box)
                    self.lines.append(line)
                    return box, line
        return None

    def _gaps(self, box: Bbox) -> NDArray[np.float64]:
        """How far each marker's edge is from the box; negative inside."""
        nearest = np.clip(self.points, (box.x0, box.y0), (box.x1, box.y1))
        distances: NDArray[np.float64] = np.hypot(*(self.points - nearest).T) - self.reach
        return distances

    def _free(self, box: Bbox) -> bool:
        frame = self.frame
        if not (frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1):
            return False
        if self._gaps(box).min() < 0 or any(box.overlaps(other) for other in self.boxes):
            return False
        return not any(self._crosses(line, box) for line in self.lines)

    @staticmethod
    def _crosses(line: NDArray[np.float64], box: Bbox) -> bool:
        return bool(Path(line).intersects_bbox(box, filled=False))
