"""What the figure of a cap's settings draws: groups with their marks, limits, places that several settings share."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from persona_axis.plots.house import ACCENT

if TYPE_CHECKING:
    from pandas import DataFrame

_BARS = 12  # more controls than this, and their bars are a grid
_SAME = 1.2  # points (1/72 inch) between marks that hide each other
_BESIDE = [  # ways from a place to the number beside it
    (dx, side * dy) for dy in (7, 10, 16, 24, 32, 40) for dx in (0, 8, -8) for side in (1, -1)
]
_NEAR = 10  # beyond that a line leads to the number
_CONTROLS = {"span": ("s", "0.85"), "shuffled": ("^", "white"), "gaussian": ("X", "0.55"), "mixture": ("<", "0.7")}
_OTHERS = ((">", "white"), ("p", "0.85"), ("h", "0.55"))


class Group(NamedTuple):
    """Settings that are drawn alike."""

    rows: NDArray[np.bool_]
    mark: dict[str, Any]
    bar: dict[str, Any] | None
    """How their intervals look; None where they are left out."""


def groups(known: DataFrame) -> dict[str, Group]:
    """The groups of settings by name; the most important last, so on top."""
    kinds, picked, full = kinds_of(known), chosen(known), measured_in_full(known)
    clear: dict[str, Any] = {"color": "0.1", "lw": 1.0, "zorder": 2}
    found = {"caps, fewer items": Group((kinds == "cap") & ~picked & ~full, _mark("o", 3.5, "white", "0.55"), None)}
    own = known["control"].fillna("control").to_numpy(object) if "control" in known else np.full(len(known), "control")
    controls = np.where((kinds == "control") & ~picked, own, "")
    faint = {"color": "0.75", "lw": 0.5, "zorder": 1.5} if np.sum(controls != "") <= _BARS else None
    spare = cycle(_OTHERS)
    for name in sorted(set(controls) - {""}, reverse=True):
        marker, face = _CONTROLS.get(name) or next(spare)
        found[str(name)] = Group(controls == name, _mark(marker, 4.5, face, "0.35"), faint)
    found["caps"] = Group((kinds == "cap") & ~picked & full, _mark("o", 5, "0.1", "white"), clear)
    found["no cap"] = Group(kinds == "none", _mark("*", 12, "white", "black"), clear)
    found["chosen"] = Group(picked, _mark("D", 7, ACCENT, "white"), {**clear, "color": ACCENT, "lw": 1.4})
    return {name: group for name, group in found.items() if group.rows.any()}


def _mark(marker: str, size: float, face: str, edge: str) -> dict[str, Any]:
    return {"marker": marker, "ms": size, "mfc": face, "mec": edge, "mew": 0.8}


def kinds_of(known: DataFrame) -> NDArray[Any]:
    return known["kind"].to_numpy(object) if "kind" in known else np.full(len(known), "cap", dtype=object)


def chosen(known: DataFrame) -> NDArray[np.bool_]:
    given = known["chosen"].to_numpy(object) if "chosen" in known else [False] * len(known)
    return np.array([value is True or value == 1 for value in given], dtype=bool)


def measured_in_full(known: DataFrame) -> NDArray[np.bool_]:
    """Which rows were measured in full: all of a table without stages, or where none got there."""
    full = (known["stage"] == "full").to_numpy(bool) if "stage" in known else np.ones(len(known), dtype=bool)
    return full if full.any() else np.ones(len(known), dtype=bool)


def bars(ax: Axes, rows: DataFrame, **look: Any) -> None:
    """The 95% intervals of both figures."""
    ax.vlines(rows["harm"], rows["capability_low"], rows["capability_high"], **look)
    if {"harm_low", "harm_high"} <= set(rows.columns):
        ax.hlines(rows["capability"], rows["harm_low"], rows["harm_high"], **look)


def about_bars(known: DataFrame, named: dict[str, Group]) -> str:
    """What the bars are; and, of those left out, for which settings and how wide they are in the median."""
    without = np.any([np.zeros(len(known), bool), *(group.rows for group in named.values() if not group.bar)], axis=0)
    if not without.any():
        return "bars: 95% intervals"
    of = {"control": "controls", "cap": "fewer items"}
    what = " and ".join(name for kind, name in of.items() if kind in set(kinds_of(known)[without]))
    told = [
        _half_width(known[without], "capability", 1, "±", " points"),
        _half_width(known[without], "harm", 100, "harm ±", "%"),
    ]
    about = ", ".join(part for part in told if part)
    return f"bars: 95% intervals; not drawn for {what}" + (f": about {about}" if about else "")


def _half_width(rows: DataFrame, figure: str, factor: float, before: str, unit: str) -> str:
    if not {f"{figure}_low", f"{figure}_high"} <= set(rows.columns):
        return ""
    halves = (rows[f"{figure}_high"] - rows[f"{figure}_low"]).to_numpy(np.float64) / 2
    halves = halves[np.isfinite(halves)]
    return f"{before}{factor * float(np.median(halves)):.2g}{unit}" if len(halves) else ""


def front(rows: DataFrame) -> NDArray[np.float64]:
    """The settings that no other betters in both figures, by rising harm [n, 2]."""
    ordered = rows[["harm", "capability"]].sort_values(["harm", "capability"], ascending=[True, False])
    points: NDArray[np.float64] = ordered.to_numpy(np.float64).reshape(-1, 2)
    before = np.maximum.accumulate(np.append(-np.inf, points[:, 1]))[:-1]
    best: NDArray[np.float64] = points[points[:, 1] > before]
    return best


def limits(known: DataFrame, barred: NDArray[np.bool_], bound: float) -> tuple[float, float]:
    """From low to high: room for all that has bars, with these; for the rest twice as far down."""
    ends = known.loc[barred, ["capability", "capability_low", "capability_high"]].to_numpy(np.float64)
    low, high = min(np.nanmin(ends), -1.5 * bound), max(np.nanmax(ends), 0.5 * bound, known["capability"].max())
    within = known["capability"][known["capability"] >= low - (high - low)]
    low, pad = min(low, within.min()), 0.06 * (high - low) or 1.0
    return float(low - pad), float(high + pad)


def shared(ax: Axes, xy: NDArray[np.float64], named: dict[str, Group]) -> dict[int, int]:
    """How many settings stand at a place of `xy` [n, 2], where more than one does: the uppermost's row -> count.

    The limits must be final. The layout need not be: it moves the panel more than it stretches it.
    """
    points = _in_points(ax, xy)
    counts: dict[int, int] = {}
    for row in (int(row) for group in reversed(named.values()) for row in np.flatnonzero(group.rows)):
        away = {at: float(np.hypot(*(points[at] - points[row]))) for at in counts}
        nearest = min(away, key=lambda at: away[at], default=row)
        at = nearest if away.get(nearest, np.inf) <= _SAME else row
        counts[at] = counts.get(at, 0) + 1
    return {at: count for at, count in counts.items() if count > 1}


def write_counts(
    ax: Axes, counts: dict[int, int], xy: NDArray[np.float64], known: DataFrame, named: dict[str, Group]
) -> None:
    """Writes ×3 beside a place that three settings share; limits and layout must be final."""
    points, room = _in_points(ax, xy), _Room([])
    for group in named.values():
        half = np.full(2, max(0.36 * group.mark["ms"], 2.5))
        room.boxes.extend((point, half) for point in points[group.rows])
        room.boxes.extend(_bar_boxes(ax, known[group.rows]) if group.bar else [])
    for at in sorted(counts, key=lambda at: tuple(xy[at])):
        way = room.take(points[at], np.array([2.9 + 2.1 * len(str(counts[at])), 3.5]))
        line = {"arrowstyle": "-", "lw": 0.4, "color": "0.5", "shrinkA": 0, "shrinkB": 2}
        ax.annotate(
            f"×{counts[at]}", xy[at], way, textcoords="offset points", ha="center", va="center", fontsize=6.5,
            arrowprops=line if abs(way[1]) > _NEAR else None, zorder=5,
        ).set_in_layout(False)  # fmt: skip


_Box = tuple[NDArray[np.float64], NDArray[np.float64]]  # its middle and half its size, in points


class _Room(NamedTuple):
    """What is taken so far."""

    boxes: list[_Box]

    def take(self, point: NDArray[np.float64], half: NDArray[np.float64]) -> tuple[float, float]:
        """The nearest way from a point to a free box of that half size; a line to one far off must be free as well."""
        for way in _BESIDE:
            shift = np.array(way, np.float64)
            line = (point + shift / 2, np.maximum(np.abs(shift) / 2 - 4, 0.2))
            if self._free(point + shift, half) and (abs(way[1]) <= _NEAR or self._free(*line)):
                self.boxes.extend([(point + shift, half), line])
                return way
        return _BESIDE[0]

    def _free(self, middle: NDArray[np.float64], half: NDArray[np.float64]) -> bool:
        return not any(bool(np.all(np.abs(middle - other) < half + its)) for other, its in self.boxes)


def _in_points(ax: Axes, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    places: NDArray[np.float64] = ax.transData.transform(xy) * 72 / figure.dpi
    return places


def _bar_boxes(ax: Axes, rows: DataFrame) -> list[_Box]:
    ends = [rows[["harm", "capability_low", "harm", "capability_high"]]]
    if {"harm_low", "harm_high"} <= set(rows.columns):
        ends.append(rows[["harm_low", "capability", "harm_high", "capability"]])
    known = np.concatenate([pair.to_numpy(np.float64) for pair in ends])
    known = known[np.isfinite(known).all(axis=1)]
    low, high = _in_points(ax, known[:, :2]), _in_points(ax, known[:, 2:])
    return list(zip((low + high) / 2, (high - low) / 2 + 0.6, strict=True))
