"""Every figure: plain arrays or the tidy table in, a matplotlib `Figure` out, nothing shown and nothing saved.

Made for print: colours that the colour-blind and a grey printer keep apart (order is carried by lightness,
groups also by line and marker), text at its final size, projections labelled in residual-stream units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from persona_axis.plots import house
from persona_axis.plots.bands import ribbon
from persona_axis.plots.calibration import calibration_pareto, dose_response
from persona_axis.plots.conversation import one_conversation
from persona_axis.plots.drift import capped_against_uncapped, drift_by_kind, trajectories_by_domain
from persona_axis.plots.house import ACCENT, DARK, LIGHT, UNITS, canvas, matrix, note_above, titled, vector
from persona_axis.plots.labels import place_labels
from persona_axis.plots.space import layer_cosines, persona_space_3d
from persona_axis.plots.traits import trait_cosines

__all__ = [
    "calibration_pareto", "capped_against_uncapped", "distributions", "dose_response", "drift_by_kind",
    "layer_cosines", "layer_profile", "one_conversation", "persona_space_3d", "ranking", "role_map",
    "trait_cosines", "trajectories_by_domain", "variance_curve",
]  # fmt: skip


def role_map(
    points: ArrayLike,
    projections: ArrayLike,
    names: Sequence[str],
    default: ArrayLike,
    *,
    default_projection: float | None = None,
    shares: tuple[float, float] | None = None,
    layer: int | None = None,
    label: int = 26,
) -> Figure:
    """Roles on the first two principal components, coloured by their projection on the axis.

    points: [n, 2] PCA coordinates; projections: [n], <role, axis>; names: n; default: [2], where the model
    without a role sits; shares: parts of the variance that PC1 and PC2 carry. At most `label` roles are
    named, the outermost first.
    """
    xy, values = matrix(points, "points", 2), vector(projections, "projections")
    home = vector(default, "default")
    if not len(xy) == len(values) == len(names) or home.shape != (2,):
        raise ValueError(f"{len(xy)} points, {len(values)} projections, {len(names)} names, {home.shape}")
    with canvas(6.3, 4.6) as (figure, ax):
        seen = values if default_projection is None else np.append(values, default_projection)
        scale: dict[str, Any] = {"cmap": "cividis", "vmin": seen.min(), "vmax": seen.max()}
        dots = ax.scatter(xy[:, 0], xy[:, 1], 17, values, lw=0.35, edgecolors="0.15", zorder=3, **scale)
        ax.plot(*home, marker="*", ms=15, mfc="white", mec="black", mew=1.1, ls="none", zorder=5)
        parts = ["", ""] if shares is None else [f" ({share:.0%} of variance)" for share in shares]
        ax.set(xlabel=f"PC1{parts[0]}, {UNITS}", ylabel=f"PC2{parts[1]}, {UNITS}")
        ax.set_title(titled(f"{len(names)} roles in persona space", layer))
        ax.margins(0.09)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        bar = figure.colorbar(dots, ax=ax, fraction=0.045, pad=0.02)
        bar.set_label(f"projection on the axis ({UNITS})\nlarger = more Assistant")
        if default_projection is not None:
            bar.ax.plot([0.5], [default_projection], "*", ms=9, mfc="white", mec="black", clip_on=False)
        figure.draw_without_rendering()  # fixes the layout, which the places of the labels depend on
        spots = [(float(x), float(y)) for x, y in (*xy, home)]
        chosen = [(len(names), "default"), *((i, names[i]) for i in _outermost(xy, values, label))]
        place_labels(ax, spots, chosen, large=len(names))
    return figure


def variance_curve(ratios: ArrayLike, *, layer: int | None = None, marks: Sequence[float] = (0.7, 0.8, 0.9)) -> Figure:
    """How much of the roles' variance the first components carry; ratios: [components], each one's share."""
    shares = vector(ratios, "ratios")
    total = np.cumsum(shares)
    reach = [min(int(np.searchsorted(total, mark - 1e-12)) + 1, len(shares)) for mark in marks]
    shown = min(len(shares), max(int(1.35 * max(reach)) + 3, 12))  # leaves room for the marks' names
    with canvas(5.2, 3.3) as (figure, ax):
        numbers = np.arange(1, shown + 1)
        ax.bar(numbers, shares[:shown], width=0.72, color="0.78", label="each component")
        ax.plot(numbers, total[:shown], color=DARK, marker="o", ms=3.2, lw=1.4, label="all up to it", zorder=3)
        for mark, count in zip(marks, reach, strict=True):
            ax.axhline(mark, color="0.45", lw=0.7, ls=(0, (4, 3)), zorder=1)
            ax.plot(count, total[count - 1], "o", ms=7, mfc="none", mec=ACCENT, mew=1.2, zorder=4)
            name = f"{mark:.0%}: {count} component{'s' * (count != 1)}"
            where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            ax.annotate(name, (1, mark), (-2, -2), **where, fontsize=7.5, color=ACCENT, ha="right", va="top")
        ax.set(xlabel="principal component", ylabel="share of the roles' variance")
        ax.set(xlim=(0.4, shown + 0.6), ylim=(0, 1.04))
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        ax.yaxis.set_major_formatter("{x:.0%}")
        ax.set_title(titled("Variance of the role vectors", layer))
        ax.legend(loc="upper left", bbox_to_anchor=(0.62, 0.5))
    return figure


def ranking(
    names: Sequence[str],
    projections: ArrayLike,
    *,
    default_projection: float | None = None,
    layer: int | None = None,
    count: int = 15,
) -> Figure:
    """The `count` roles nearest to the Assistant and the `count` farthest; projections: [n], <role, axis>."""
    values = vector(projections, "projections")
    if len(values) != len(names):
        raise ValueError(f"{len(values)} projections for {len(names)} names")
    order = np.argsort(-values, kind="stable")
    between = len(order) - 2 * count
    if between > 0:
        order = np.concatenate([order[:count], order[-count:]])
    rows = [place + (between > 0 and place >= count) for place in range(len(order))]  # one free for the gap
    with canvas(5.2, 1.0 + 0.155 * (rows[-1] + 1)) as (figure, ax):
        left, span = float(values.min()), float(np.ptp(values)) or 1.0
        for row, index in zip(rows, order, strict=True):
            value = float(values[index])
            colour = matplotlib.colormaps["cividis"]((value - left) / span)
            ax.plot([left - 0.03 * span, value], [row, row], color="0.8", lw=0.8, zorder=1)
            ax.plot(value, row, "o", ms=5, mfc=colour, mec="0.15", mew=0.5, zorder=3)
        if between > 0:
            text: dict[str, Any] = {"fontsize": 7.5, "style": "italic", "color": "0.35", "va": "center"}
            ax.text(left - 0.03 * span, count, f"{between} roles between", **text)
        if default_projection is not None:
            ax.axvline(default_projection, color=ACCENT, lw=1.2, ls=(0, (5, 2)), zorder=2)
            note_above(ax, "default", default_projection)
        ax.set_yticks(rows, [names[index] for index in order], parse_math=False)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set(ylim=(rows[-1] + 0.6, -0.8))
        ax.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        ax.set_xlabel(f"projection on the axis ({UNITS})\nlarger = more Assistant")
        ax.set_title(titled("Nearest to the Assistant and farthest from it", layer), pad=16)
    return figure


def distributions(
    tables: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    layer: int | None = None,
    bounds: Mapping[str, float] | None = None,
) -> Figure:
    """Where projections of the default and of roles lie, one panel for each entry of `tables`.

    tables: what was measured ("mean of a reply", "single tokens") -> (default, roles), each the percentiles
    0..100 of the projections, [101]. bounds: named positions to draw, such as a cap's floor.
    """
    looks = (("default", DARK, "-", -0.10), ("roles", LIGHT, (0, (5, 1.5)), -0.22))
    with canvas(5.6, 1.0 + 1.55 * len(tables), rows=len(tables)) as (figure, first):
        panels = figure.axes
        for ax, (what, pair) in zip(panels, tables.items(), strict=True):
            for quantiles, (name, colour, line, level) in zip(pair, looks, strict=True):
                table = vector(quantiles, f"{what}, {name}")
                grid, heights = house.density(table)
                ax.fill_between(grid, heights, color=colour, alpha=0.28, lw=0)
                ax.plot(grid, heights, color=colour, lw=1.5, ls=line, label=name)
                house.percentile_bar(ax, table, level, colour)
            for text, position in (bounds or {}).items():
                ax.axvline(position, color=ACCENT, lw=1.2, ls=":", zorder=4)
                if ax is first:
                    note_above(ax, text, position)
            ax.set(ylim=(-0.32, 1.08), yticks=[], ylabel=f"{what}\n(density, each\nscaled to its peak)")
            ax.axhline(0, color="0.25", lw=0.7)
            ax.spines["left"].set_visible(False)
            if ax is not panels[-1]:
                ax.spines["bottom"].set_visible(False)
                ax.tick_params(axis="x", length=0)
        above = 2.2 if bounds else 0.8  # in the title's line: beside the curves there may be no room
        first.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderpad=0, borderaxespad=above)
        first.set_title(titled("Projections on the axis", layer), pad=16 if bounds else 6)
        panels[-1].set_xlabel(
            f"projection on the axis ({UNITS}), larger = more Assistant\n"
            "bars: percentiles 1-99 (thin), 5-95, 25-75 (thick), median (white)"
        )
    return figure


def layer_profile(
    layers: Sequence[int],
    curves: Mapping[str, ArrayLike],
    *,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    chosen: int | None = None,
) -> Figure:
    """Cosines by layer, such as |cos(axis, PC1)|; bands: name -> (low, high) interval, which may be negative."""
    looks = ((DARK, "-", "o"), (LIGHT, (0, (5, 1.5)), "s"), (ACCENT, ":", "^"), ("0.4", "-.", "D"))
    with canvas(5.2, 3.0) as (figure, ax):
        seen: list[ArrayLike] = []
        for (name, values), (colour, line, marker) in zip(curves.items(), looks, strict=False):
            look: dict[str, Any] = {"color": colour, "ls": line, "marker": marker, "label": name}
            seen.append(vector(values, name))
            ax.plot(layers, seen[-1], ms=4, lw=1.4, markevery=house.every(layers), zorder=3, **look)
            if bands and name in bands:
                low, high = (vector(edge, name) for edge in bands[name])
                ribbon(ax, layers, low, high, colour, line)
                seen += [low, high]
        house.cosines_by_layer(ax, seen, chosen)
        ax.set_title("The axis by layer", pad=16)
        ax.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none")
    return figure


def _outermost(xy: NDArray[np.float64], values: NDArray[np.float64], count: int) -> list[int]:
    """Roles worth naming: both ends of the axis, then those that lie far out, no two of these near each other."""
    ends = np.argsort(values, kind="stable")
    few = max(1, count // 4)
    centred = (xy - xy.mean(0)) / np.maximum(xy.std(0), 1e-12)
    radius = np.argsort(-np.hypot(*centred.T), kind="stable")
    picked = list(dict.fromkeys(int(i) for i in (*ends[::-1][:few], *ends[:few])))
    for index in radius:
        if np.hypot(*(centred[picked] - centred[index]).T).min() > 0.4:
            picked.append(int(index))
    return picked[:count]
