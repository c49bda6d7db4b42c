"""What the drift figures share: percentile bands of the axis, intervals along a curve, names that stay apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from numpy.typing import ArrayLike, NDArray

from persona_axis.plots.house import DARK, LIGHT

if TYPE_CHECKING:
    from persona_axis.axis import Axis

LOOKS = (("0.1", "-", "o"), ("#25867c", (0, (4, 1.2)), "s"), ("#7d4a9c", (0, (1, 1)), "^"), ("0.55", "-.", "D"))
"""Colour, line and marker of the first four groups of a figure: each alone tells them apart, and from the bands."""
_TINTS = {"default": (DARK, 0.16, "-", DARK, ""), "roles": (LIGHT, 0.14, (0, (4, 2)), "#94590f", "////")}
"""Colour, its strength, line of the edges, colour of the name, hatch: without colours the hatch tells them apart."""


class Band(NamedTuple):
    """Where a named distribution of the axis file lies at one layer."""

    name: str
    low: float
    high: float


class Name(NamedTuple):
    """A name that stands in the margin beside the place it belongs to."""

    text: str
    at: float
    colour: str = "black"
    weight: str = "normal"


def percentile_bands(axis: Axis | None, layer: int | None, low: float = 5, high: float = 95) -> list[Band]:
    """The default's and the roles' percentiles `low` to `high` (means of replies), as far as the file has them."""
    if axis is None or layer is None:
        return []
    row = axis.row(layer)
    return [
        Band(name, float(axis.quantile(name, low)[row]), float(axis.quantile(name, high)[row]))
        for name in _TINTS
        if f"quantiles_{name}" in axis.arrays
    ]


def shade(ax: Axes, bands: Sequence[Band], upright: bool = False) -> None:
    """Shade the bands across the panel (up and down it if `upright`), behind everything else."""
    span, edge = (ax.axvspan, ax.axvline) if upright else (ax.axhspan, ax.axhline)
    for name, low, high in bands:
        colour, alpha, line, _, hatch = _TINTS[name]
        span(low, high, color=colour, alpha=alpha, lw=0, zorder=0)
        if hatch:
            span(low, high, fc="none", ec=colour, alpha=0.3, lw=0, hatch=hatch, zorder=0)
        for end in (low, high):
            edge(end, color=colour, alpha=0.6, lw=0.6, ls=line, zorder=0.5)


def band_names(bands: Sequence[Band], separator: str = "\n") -> list[Name]:
    """The bands' names, at their middles."""
    return [Name(f"{name}{separator}5–95%", (low + high) / 2, _TINTS[name][3]) for name, low, high in bands]


def ribbon(ax: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike, colour: str, line: Any = None) -> None:
    """An interval along a curve, its edges in that line, if any; a bar at a place without neighbours."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    ax.fill_between(x, low, high, color=colour, alpha=0.2 if line else 0.25, lw=0, zorder=2)
    for edge in (low, high) if line else ():  # where two ribbons overlap, their edges still tell which is which
        ax.plot(x, edge, color=colour, ls=line, lw=0.7, alpha=0.8, zorder=2.2)
    there = np.pad(np.isfinite(low) & np.isfinite(high), 1)
    alone = there[1:-1] & ~there[:-2] & ~there[2:]
    ax.vlines(np.asarray(x, np.float64)[alone], low[alone], high[alone], color=colour, lw=1.6, alpha=0.7, zorder=2)


def turn_ticks(first: int, last: int) -> list[int]:
    """Turns to name on the axis: the first, and the multiples of a round step."""
    step = next((step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500) if (last - first) / step <= 4), last)
    return [first, *(turn for turn in range(step, last + 1, step) if turn - first > step / 2)]


def headline(figure: Figure, title: str, keys: Mapping[str, Line2D] | None = None) -> None:
    """The figure's title at its left edge, and below it named marks when there are any, in as few rows as hold them."""
    rows = 0
    if keys:
        below = 1 - 18 / 72 / figure.get_figheight()
        points_only = all(key.get_linestyle() == "None" for key in keys.values())
        names = [name.replace("$", r"\$") for name in keys]
        renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        for rows in range(1, len(keys) + 1):
            legend = figure.legend(
                list(keys.values()), names, loc="upper left", bbox_to_anchor=(0.01, below), ncols=-(-len(keys) // rows),
                borderpad=0, borderaxespad=0, columnspacing=1.6, handletextpad=0.5,
                handlelength=1.2 if points_only else 3,
            )  # fmt: skip
            legend.set_in_layout(False)  # the empty lines of the title hold its place
            if legend.get_window_extent(renderer).x1 <= figure.bbox.x1 or rows == len(keys):
                break
            legend.remove()
    figure.suptitle(title + "\n" * rows, x=0.01, ha="left", fontsize=9.5, parse_math=False)


def footing(figure: Figure, *lines: str) -> str:
    """Lines for the figure's foot; those wider than it are broken, where they can be behind a semicolon."""
    width = int(16 * figure.get_figwidth())  # letters of the foot's size in an inch
    told: list[str] = []
    for line in lines:
        parts = [""]
        for clause in line.split("; "):
            joined = f"{parts[-1]}; {clause}" if parts[-1] else clause
            parts[-1:] = [joined] if len(joined) <= width or not parts[-1] else [f"{parts[-1]};", clause]
        told += [piece for part in parts for piece in wrap(part, width, break_on_hyphens=False)]
    return "\n".join(told)


def names_beside(ax: Axes, names: Sequence[Name], size: float = 7.5) -> list[Annotation]:
    """Write names right of the panel at their heights, moved apart where they would touch; limits must be final."""
    return _names(ax, names, 1, size)


def names_above(ax: Axes, names: Sequence[Name], size: float = 7.5) -> list[Annotation]:
    """Write names above the panel at their places, moved apart where they would touch; limits must be final."""
    return _names(ax, names, 0, size)


def _names(ax: Axes, names: Sequence[Name], way: int, size: float) -> list[Annotation]:
    """`way` is the direction in which the names follow each other: 0 along x, 1 along y."""
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    low, high = sorted(ax.get_ylim() if way else ax.get_xlim())
    names = sorted((name._replace(at=float(np.clip(name.at, low, high))) for name in names), key=lambda name: name.at)
    away = 12.0 if way else 7.0
    look: dict[str, Any] = {
        "xycoords": ("axes fraction", "data") if way else ("data", "axes fraction"),
        "textcoords": "offset points", "annotation_clip": False, "ha": "left" if way else "center",
        "va": "center" if way else "bottom", "linespacing": 0.95, "parse_math": False,
    }  # fmt: skip
    leader: dict[str, Any] = {"arrowstyle": "-", "lw": 0.5, "shrinkA": 0.5, "shrinkB": 1.5}
    leader["relpos"] = (0, 0.5) if way else (0.5, 0)
    notes = [
        ax.annotate(
            text, (1, at) if way else (at, 1), (away, 0) if way else (0, away), fontsize=size, color=colour,
            fontweight=weight, arrowprops=leader | {"color": colour}, **look,
        )
        for text, at, colour, weight in names
    ]  # fmt: skip
    if not notes:
        return []
    figure.draw_without_rendering()  # the layout makes room for the names; only then their distances are known
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    points = 72 / figure.dpi
    extents = [Text.get_window_extent(note, renderer) for note in notes]
    sizes = np.array([extent.height + 1 if way else extent.width + 8 for extent in extents]) * points
    pixels = ax.transData.transform([(low, name.at) if way else (name.at, 0) for name in names])[:, way]
    for note, shift in zip(notes, spread(pixels * points, sizes) - pixels * points, strict=True):
        note.set_position((away, float(shift)) if way else (float(shift), away))
    return notes


def spread(places: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rising `places` moved as little as possible (least squares) so that things of these sizes do not overlap."""
    offsets = np.concatenate([[0.0], np.cumsum((sizes[1:] + sizes[:-1]) / 2)])
    blocks: list[tuple[float, int]] = []  # isotonic regression of places - offsets: pooled neighbours
    for wanted in places - offsets:
        mean, count = float(wanted), 1
        while blocks and blocks[-1][0] > mean:
            before, many = blocks.pop()
            mean, count = (mean * count + before * many) / (count + many), count + many
        blocks.append((mean, count))
    means = np.array([mean for mean, _ in blocks], dtype=np.float64)
    moved: NDArray[np.float64] = np.repeat(means, [count for _, count in blocks]) + offsets
    return moved
