"""Figures of the axis itself beyond the plane: roles in three dimensions, and directions from layer to layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d import proj3d  # type: ignore[import-untyped]
from numpy.typing import ArrayLike, NDArray

from persona_axis.plots.bands import LOOKS, Name, headline, names_beside, ribbon
from persona_axis.plots.house import STYLE, UNITS, canvas, cosines_by_layer, every, matrix, titled, vector
from persona_axis.plots.labels import place_labels

_STEMS = 40  # more roles than this, and only the named ones stand on stems
_WRITTEN = 14  # layers up to which every cosine is written into its square


def persona_space_3d(
    points: ArrayLike,
    projections: ArrayLike,
    names: Sequence[str],
    default: ArrayLike,
    *,
    default_projection: float | None = None,
    shares: Sequence[float] | None = None,
    layer: int | None = None,
    view: tuple[float, float] = (18.0, -62.0),
    label: int = 14,
) -> Figure:
    """Roles on the first three principal components, each on a stem that stands on the floor of the space.

    points: [n, 3] PCA coordinates, whose origin is the mean of the roles; projections: [n], <role, axis>, told by
    colour; default: [3]. The line from the mean of the roles to the default is the axis, as far as three
    components show it. view: elevation and azimuth in degrees. At most `label` roles are named, as
    far out along the axis as there is room. shares: parts of the variance that the three components carry.
    """
    xyz, values, home = matrix(points, "points", 3), vector(projections, "projections"), vector(default, "default")
    if not len(xyz) == len(values) == len(names) or home.shape != (3,):
        raise ValueError(f"{len(xyz)} points, {len(values)} projections, {len(names)} names, default {home.shape}")
    if shares is not None and len(shares) < 3:
        raise ValueError(f"shares: expected 3, got {len(shares)}")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.8, 4.3))
        ax: Any = figure.add_axes((-0.045, 0.09, 0.82, 0.94), projection="3d", computed_zorder=False)
        seen = values if default_projection is None else np.append(values, default_projection)
        spots = np.vstack([xyz, home, np.zeros(3)])
        floor = _room(ax, spots, view)
        _axis_names(ax, shares)
        ax.plot(*zip((*home[:2], floor), home, strict=True), color="black", lw=0.8, ls=(0, (1, 1.5)), zorder=1)
        place = _seen_at(ax, spots)
        near = np.interp(place[:, 2], (place[:, 2].min(), place[:, 2].max()), (1.0, 0.0))  # smaller = nearer
        scale: dict[str, Any] = {"cmap": "cividis", "vmin": seen.min(), "vmax": seen.max()}
        order = np.argsort(near[: len(xyz)])
        dots = ax.scatter(
            *xyz[order].T, s=10 + 22 * near[order], c=values[order], lw=0.4, edgecolors="0.15", depthshade=False,
            zorder=3, **scale,
        )  # fmt: skip
        ax.plot(*zip(np.zeros(3), home, strict=True), color="black", lw=1.1, zorder=4)
        ax.plot([0], [0], [0], marker="o", ms=4, mfc="white", mec="black", mew=1.0, ls="none", zorder=4)
        ax.plot(*home[:, None], marker="*", ms=15, mfc="white", mec="black", mew=1.1, ls="none", zorder=5)
        figure.text(0.01, 0.985, titled(f"{len(names)} roles in persona space", layer), va="top", fontsize=9.5)
        told = (
            f"principal components in {UNITS}; larger marks are nearer, stems stand on the floor\n"
            "line: the axis, from the mean of the roles (○) to the default (☆)"
        )
        figure.text(0.43, 0.015, told, fontsize=8, ha="center")
        bar = figure.colorbar(dots, cax=figure.add_axes((0.845, 0.22, 0.022, 0.66)))
        bar.set_label(f"projection on the axis ({UNITS})\nlarger = more Assistant")
        if default_projection is not None:
            bar.ax.plot([0.5], [default_projection], "*", ms=9, mfc="white", mec="black", clip_on=False)
        figure.draw_without_rendering()
        ends = np.argsort(values, kind="stable")
        candidates = dict.fromkeys(int(i) for pair in zip(ends[::-1], ends, strict=True) for i in pair)
        named = [(len(names), "default"), *((i, names[i]) for i in list(candidates)[: 3 * label])]
        written = set(_name_points(figure, ax, spots, named, large=len(names), most=label + 1))
        for (x, y, z), name in zip(xyz, names, strict=True):
            if name in written or len(xyz) <= _STEMS:
                ax.plot([x, x], [y, y], [floor, z], color="0.55", lw=0.5, zorder=1)
    return figure


def layer_cosines(
    cosines: ArrayLike | Mapping[str, ArrayLike],
    layers: Sequence[int],
    *,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    chosen: int | None = None,
    title: str | None = None,
) -> Figure:
    """Cosines of directions by layer: a square [L, L] between layers as a map, or named curves [L] (up to four).

    Curves: such as the axis against PC1, or against another model's axis; bands: name -> (low, high) intervals. chosen:
    a layer to mark. The scale of the map is the whole of 0 to 1, or of -1 to 1 as soon as one cosine is negative.
    """
    if isinstance(cosines, Mapping):
        curves = {name: vector(values, name) for name, values in cosines.items()}
        for name, values in curves.items():
            if len(values) != len(layers):
                raise ValueError(f"{name}: {len(values)} cosines for {len(layers)} layers")
        return _curves(curves, layers, bands or {}, chosen, title or "Cosine of directions, layer by layer")
    square = matrix(cosines, "cosines", len(layers))
    if len(square) != len(layers):
        raise ValueError(f"cosines: expected [{len(layers)}, {len(layers)}], got shape {square.shape}")
    return _square(square, layers, chosen, title or "Cosine of the axis between layers")


def _square(square: NDArray[np.float64], layers: Sequence[int], chosen: int | None, title: str) -> Figure:
    lowest = -1.0 if square.min() < 0 else 0.0
    with canvas(4.6, 3.9) as (figure, ax):
        picture = ax.imshow(square, cmap="cividis", vmin=lowest, vmax=1, interpolation="nearest")
        if len(layers) <= _WRITTEN:
            for (row, column), value in np.ndenumerate(square):
                colour = "white" if (value - lowest) / (1 - lowest) < 0.55 else "black"
                text = f"{value:.2f}".replace("-", "−")
                ax.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
        at = _named_layers(layers, chosen)
        ax.set_xticks(at, [str(layers[i]) for i in at])
        ax.set_yticks(at, [str(layers[i]) for i in at])
        for tick, i in [*zip(ax.get_xticklabels(), at, strict=True), *zip(ax.get_yticklabels(), at, strict=True)]:
            if layers[i] == chosen:
                tick.set_fontweight("bold")
        for spine in ax.spines.values():
            spine.set_visible(False)
        ax.tick_params(length=2)
        bold = "; bold: recommended" if chosen in layers else ""
        ax.set(xlabel=f"layer (output of decoder layer, from 0{bold})", ylabel="layer")
        bar = figure.colorbar(picture, ax=ax, fraction=0.046, pad=0.03)
        bar.set_label("cosine")
        headline(figure, title)
    return figure


def _curves(
    curves: Mapping[str, NDArray[np.float64]],
    layers: Sequence[int],
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]],
    chosen: int | None,
    title: str,
) -> Figure:
    if not 1 <= len(curves) <= len(LOOKS):
        raise ValueError(f"{len(curves)} curves: at most {len(LOOKS)} can be told apart in one figure")
    with canvas(5.4, 3.0) as (figure, ax):
        names, seen, step = [], list(curves.values()), every(layers)
        for (name, values), (colour, line, marker) in zip(curves.items(), LOOKS, strict=False):
            look: dict[str, Any] = {"color": colour, "ls": line, "marker": marker, "markevery": step}
            if name in bands:
                low, high = (vector(edge, name) for edge in bands[name])
                ribbon(ax, layers, low, high, colour, line)
                seen += [low, high]
            ax.plot(layers, values, ms=4, lw=1.4, mec="white", mew=0.5, zorder=3, **look)
            names.append(Name("\n".join(wrap(name, 22)), float(values[-1]), colour, "bold"))
        cosines_by_layer(ax, seen, chosen)
        headline(figure, title)
        names_beside(ax, names)
    return figure


def _named_layers(layers: Sequence[int], chosen: int | None) -> list[int]:
    """Rows whose layer is named beside the map: all of a few, else about eight, and the chosen one."""
    step = 1 if len(layers) <= _WRITTEN else next(s for s in (2, 5, 10, 20, 50, 100, 1000) if len(layers) / s <= 9)
    mine = [row for row, layer in enumerate(layers) if layer == chosen]
    return sorted([*mine, *(row for row in range(0, len(layers), step) if all(abs(row - m) > step / 3 for m in mine))])


def _room(ax: Any, spots: NDArray[np.float64], view: tuple[float, float]) -> float:
    """Limits and a box in the proportions of the data, as far as it stays readable, and a grid on the floor only.

    Returns the floor's height.
    """
    low, high = spots.min(0), spots.max(0)
    span = np.maximum(high - low, 0.2 * max(float((high - low).max()), 1e-9))
    low, high = (low + high) / 2 - 0.55 * span, (low + high) / 2 + 0.55 * span
    for (first, last), limit in zip(zip(low, high, strict=True), (ax.set_xlim, ax.set_ylim, ax.set_zlim), strict=True):
        limit(first, last)
    ax.set_box_aspect(np.maximum(span / span.max(), 0.55), zoom=1.15)
    ax.view_init(*view)
    ax.grid(False)
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_pane_color((1, 1, 1, 0))
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.tick_params(labelsize=7, pad=-1)
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim(), zlim=ax.get_zlim())
    (left, right), (front, back), (floor, _) = ax.get_xlim(), ax.get_ylim(), ax.get_zlim()
    for x in (x for x in ax.get_xticks() if left <= x <= right):
        ax.plot([x, x], [front, back], [floor, floor], color="0.88", lw=0.5, zorder=0.5)
    for y in (y for y in ax.get_yticks() if front <= y <= back):
        ax.plot([left, right], [y, y], [floor, floor], color="0.88", lw=0.5, zorder=0.5)
    return float(floor)


def _axis_names(ax: Any, shares: Sequence[float] | None) -> None:
    for number, name in enumerate((ax.set_xlabel, ax.set_ylabel, ax.set_zlabel)):
        share = "" if shares is None else f" ({shares[number]:.0%} of variance)"
        name(f"PC{number + 1}{share}", labelpad=1, fontsize=8)


def _seen_at(ax: Any, spots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the page shows the points, in the panel's flat coordinates, and how far away they are [n, 3]."""
    return np.column_stack(proj3d.proj_transform(*spots.T, ax.get_proj()))


def _name_points(
    figure: Figure, ax: Any, spots: NDArray[np.float64], named: Sequence[tuple[int, str]], large: int, most: int
) -> list[str]:
    """Names on a flat, empty panel that lies over the points; those that found room."""
    page = figure.transFigure.inverted().transform(ax.transData.transform(_seen_at(ax, spots)[:, :2]))
    (left, bottom), (right, top) = page.min(0) - (0.13, 0.05), page.max(0) + (0.13, 0.05)
    left, bottom, right, top = max(left, 0.0), max(bottom, 0.05), min(right, 0.82), min(top, 0.95)
    flat: Axes = figure.add_axes((left, bottom, right - left, top - bottom), frameon=False, xticks=[], yticks=[])
    flat.set(xlim=(left, right), ylim=(bottom, top))
    written = place_labels(flat, [(float(x), float(y)) for x, y in page], named, large=large, farthest=24, most=most)
    for note in flat.texts:
        note.set_path_effects([withStroke(linewidth=2.0, foreground="white")])  # readable over the axis and the stems
    return written
