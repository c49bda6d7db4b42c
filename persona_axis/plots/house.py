"""The house style of the figures: a canvas without pyplot, and the small pieces they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

UNITS = "residual-stream units"
DARK, LIGHT, ACCENT = "#1f3a5f", "#d98c2b", "#8c1d40"  # apart in lightness as well as in hue
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "0.25",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 3.0,
    "figure.dpi": 200,
    "hatch.linewidth": 0.5,
}


@contextmanager
def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, *, sharex: bool = True, by_row: bool = False
) -> Iterator[tuple[Figure, Axes]]:
    """A figure of that size in inches with `rows` x `columns` panels; made without pyplot, so no global state.

    Panels beside each other share their scale up, with `by_row` those of a row alone.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.subplots(rows, columns, sharex=sharex, sharey="row" if by_row else columns > 1)
        yield figure, figure.axes[0]


def titled(text: str, layer: int | None) -> str:
    return text if layer is None else f"{text}, layer {layer}"


def note_above(ax: Axes, text: str, x: float, colour: str = ACCENT) -> None:
    """Names a vertical line, above the frame where no data lie."""
    ax.annotate(
        text, (x, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points",
        ha="center", fontsize=8, color=colour,
    )  # fmt: skip


def cosines_by_layer(ax: Axes, values: Iterable[ArrayLike], chosen: int | None) -> None:
    """Scales of a panel with layers across and cosines up, down to the lowest of `values`; marks the `chosen` layer."""
    lowest = min((float(np.min(given)) for given in values), default=0.0)
    ax.axhline(0, color="0.6", lw=0.7, zorder=0.5)
    ax.set(xlabel="layer (output of decoder layer, from 0)", ylabel="cosine", ylim=(min(0.0, lowest) - 0.04, 1.04))
    ax.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    if chosen is not None:
        ax.axvline(chosen, color="0.6", lw=0.8, ls=(0, (2, 2)), zorder=0)
        note_above(ax, "recommended", chosen, "0.35")


def every(places: Sequence[Any] | NDArray[Any], most: int = 20) -> int:
    """Steps between the marks of a curve that leave about `most` of them, so that they do not fuse."""
    return max(1, len(places) // most)


def vector(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """As float64 [n], finite and not empty, or a ValueError that says what is not."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{what} must be a list of finite numbers, got shape {array.shape}")
    return array


def matrix(values: ArrayLike, what: str, columns: int) -> NDArray[np.float64]:
    """As float64 [n, columns], finite, or a ValueError that says what is not."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != columns or not np.isfinite(array).all():
        raise ValueError(f"{what} must be finite numbers [n, {columns}], got shape {array.shape}")
    return array


def density(table: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A smooth density, largest value 1, of a distribution that is given by its percentiles 0..100."""
    samples = np.interp(np.linspace(0, 100, 801), np.linspace(0, 100, len(table)), table)
    low, high = np.percentile(samples, [25, 75])
    spread = min(float(samples.std()), float(high - low) / 1.34) or float(samples.std()) or 1e-9
    width = 0.9 * spread * 200**-0.2  # Silverman's rule, for about as many samples as percentiles carry
    grid = np.linspace(samples[0] - 3 * width, samples[-1] + 3 * width, 400)
    heights = np.exp(-0.5 * ((grid[:, None] - samples) / width) ** 2).sum(1)
    return grid, heights / heights.max()


def percentile_bar(ax: Axes, table: NDArray[np.float64], y: float, colour: str) -> None:
    """Percentiles as a bar: 1-99 thin, 5-95 thicker, 25-75 thick, the median a white tick."""
    percents = np.linspace(0, 100, len(table))
    for ends, width in (((1, 99), 0.8), ((5, 95), 2.2), ((25, 75), 5.0)):
        x = np.interp(ends, percents, table)
        ax.plot(x, [y, y], color=colour, lw=width, solid_capstyle="butt", zorder=2)
    middle = float(np.interp(50, percents, table))
    ax.plot(middle, y, marker="|", ms=6, mec="white", mew=1.4, zorder=3)
