"""Figures of levers: what a dose of steering does, and what the settings of a cap gain and cost."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from persona_axis._bands import LOOKS, Name, footing, headline, names_beside, ribbon
from persona_axis._figure import ACCENT, canvas, titled

if TYPE_CHECKING:
    from pandas import DataFrame

_DOSE = "steering strength α (parts of the stream's mean norm; > 0: toward the Assistant)"
_GREYS = (("0.45", "-"), ("0.6", (0, (4, 1.5))), ("0.5", (0, (1, 1.2))), ("0.65", "-."))


def dose_response(
    alphas: ArrayLike,
    series: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    controls: Mapping[str, ArrayLike] | None = None,
    *,
    layer: int | None = None,
    xlabel: str = _DOSE,
    ylabel: str = "share of replies that read as the Assistant",
    share: bool = True,
    note: str = "",
) -> Figure:
    """What steering does at each strength: up to four named curves with intervals, controls grey behind them.

    alphas: [A]; series: name -> (value, low, high), each [A]; controls: name of a kind -> [draws, A] (or [A]), every
    draw one thin line; NaN where a strength was not measured. With `share` the values are shares in [0, 1].
    """
    doses = _numbers(alphas, "alphas")
    if not 1 <= len(series) <= len(LOOKS) or len(controls or {}) > len(_GREYS):
        raise ValueError(f"{len(series)} series, {len(controls or {})} kinds of controls: at most 4 can be told apart")
    order = np.argsort(doses, kind="stable")
    doses, names, draws = doses[order], [], 0
    with canvas(5.8, 3.4) as (figure, ax):
        for (kind, given), (colour, line) in zip((controls or {}).items(), _GREYS, strict=False):
            rows = np.atleast_2d(np.asarray(given, np.float64))
            if rows.ndim != 2 or rows.shape[1] != len(doses) or not len(rows):
                raise ValueError(f"control {kind}: expected [draws, {len(doses)}], got shape {np.shape(given)}")
            for row in rows[:, order]:
                held = np.isfinite(row)
                ax.plot(doses[held], row[held], color=colour, ls=line, lw=0.7, marker=".", ms=2.5, zorder=1.5)
            draws += len(rows)
            names.append(Name(_wrapped(kind), _end(rows[:, order].mean(0)), "0.4"))
        for (name, (value, low, high)), (colour, line, marker) in zip(series.items(), LOOKS, strict=False):
            value, low, high = (_numbers(v, name, len(doses))[order] for v in (value, low, high))
            ribbon(ax, doses, low, high, colour)
            ax.plot(doses, value, color=colour, ls=line, marker=marker, ms=4, lw=1.6, mec="white", mew=0.5, zorder=3)
            names.append(Name(_wrapped(name), _end(value), colour, "bold"))
        ax.axvline(0, color="0.6", lw=0.7, zorder=0.5)
        if share:
            ax.set_ylim(-0.03, 1.03)
            ax.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
        ax.set_ylim(ax.get_ylim())
        told = "band: 95% interval" + (f"; grey: {draws} control{'s' * (draws != 1)}, one line each" if draws else "")
        ax.set_xlabel(footing(figure, xlabel, told, note), parse_math=False)
        ax.set_ylabel("\n".join(wrap(ylabel, 26, break_on_hyphens=False)))
        ax.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}".replace("-", "−"))
        headline(figure, titled("Dose and response of steering", layer))
        names_beside(ax, names)
    return figure


def calibration_pareto(table: DataFrame, bound: float, *, title: str = "What a cap gains and what it costs") -> Figure:
    """Settings of a cap by the harm that is left (across, less is better) and the capability kept (up, more is better).

    table: one row a setting with `setting`, `harm` (share in [0, 1]), `capability`, `capability_low`,
    `capability_high` (points, negative = lost); and where it has them `harm_low`, `harm_high`, `chosen`, `kind`
    ("none", "cap", "control"), `control` (a kind of control) and `stage`: all but "full" are drawn small, and those
    that cost far more than the others stand as triangles at the lower edge. bound: the loss that is allowed, in points.
    Settings without harm or capability are left out and counted.
    """
    missing = {"setting", "harm", "capability", "capability_low", "capability_high"} - set(table.columns)
    if missing:
        raise ValueError(f"table: has no column {', '.join(sorted(missing))}")
    known = table[table["harm"].notna() & table["capability"].notna()].reset_index(drop=True)
    if not len(known):
        raise ValueError("table: no setting has a harm and a capability")
    marks, full = _marks(known), _full(known)
    front = _front(known[full & (_kinds(known) == "cap")])
    with canvas(6.4, 4.2) as (figure, ax):
        low, high = _limits(known, full, bound)
        xy = known[["harm", "capability"]].to_numpy(np.float64, copy=True)
        outside = xy[:, 1] < low
        xy[outside, 1] = low
        ax.axhspan(low, -bound, color="0.94", lw=0, zorder=0)
        ax.axhline(0, color="0.6", lw=0.7, zorder=0.5)
        for at, mark, bar in marks.values():
            _bars(ax, known[at & ~outside], **bar)
            ax.plot(*xy[at & ~outside].T, ls="none", zorder=bar["zorder"] + 0.2, **mark)
        if outside.any():
            ax.plot(*xy[outside].T, "v", color="0.55", ms=5, clip_on=False, zorder=4)
        ax.plot(*front.T, color="0.35", lw=0.9, ls=(0, (1, 1.5)), zorder=1.3)
        right = max([*xy[:, 0], *(known["harm_high"][full].dropna() if "harm_high" in known else [])])
        ax.set(xlim=(-0.03 * right - 0.005, 1.04 * right + 0.005), ylim=(low, high))
        ax.xaxis.set_major_formatter(lambda x, _: f"{round(100 * x, 6):g}%")
        ax.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
        ax.set_ylabel("change of capability (points; < 0: lost)")
        told = ["harm: share of persona-jailbreaks that succeed", "bars: 95% intervals"]
        if len(front) > 1:
            told[1] += "; dotted: caps that none betters in both"
        if outside.any():
            told.append(
                _counted(int(outside.sum()), f"below the edge, down to −{-known['capability'].min():.0f} points")
            )
        if len(known) < len(table):
            told.append(_counted(len(table) - len(known), "not drawn: harm or capability unknown"))
        if "chosen" in table and not _chosen(table).any():
            told.append("no setting was chosen")
        ax.set_xlabel("\n".join(told))
        counted = {name: f"{name} ({int(at.sum())})" for name, (at, _, _) in marks.items()}
        counted |= {"no cap": "no cap", "chosen": _cut(f"chosen: {', '.join(known['setting'][_chosen(known)])}")}
        keys = {counted[name]: Line2D([], [], ls="none", **mark) for name, (_, mark, _) in reversed(marks.items())}
        headline(figure, title, keys)
        names_beside(ax, [Name(f"allowed loss:\n{bound:g} point{'s' * (bound != 1)}", -bound, "0.35")])
    return figure


_Group = tuple[NDArray[np.bool_], dict[str, Any], dict[str, Any]]


def _marks(known: DataFrame) -> dict[str, _Group]:
    """Name of each group of settings -> its rows, its marks and its bars; the most important last, so on top."""
    kinds, chosen, full = _kinds(known), _chosen(known), _full(known)
    faint, clear = {"color": "0.8", "lw": 0.5, "zorder": 1.5}, {"color": "0.1", "lw": 1.0, "zorder": 3}
    marks: dict[str, _Group] = {
        "caps, fewer items": ((kinds == "cap") & ~chosen & ~full, _mark("o", 3.5, "white", "0.55"), faint)
    }
    own = known["control"].fillna("control").to_numpy(object) if "control" in known else np.full(len(known), "control")
    controls = np.where(kinds == "control", own, "")
    for name, marker in zip(sorted(set(controls) - {""}, reverse=True), "sD^v<>", strict=False):
        marks[str(name)] = (controls == name, _mark(marker, 4.5, "0.85", "0.4"), faint)
    marks["caps"] = ((kinds == "cap") & ~chosen & full, _mark("o", 5, "0.1", "white"), clear)
    marks["no cap"] = (kinds == "none", _mark("*", 12, "white", "black"), clear)
    marks["chosen"] = (chosen, _mark("D", 7, ACCENT, "white"), {**clear, "color": ACCENT, "lw": 1.4, "zorder": 4})
    return {name: group for name, group in marks.items() if group[0].any()}


def _mark(marker: str, size: float, face: str, edge: str) -> dict[str, Any]:
    return {"marker": marker, "ms": size, "mfc": face, "mec": edge, "mew": 0.8}


def _kinds(known: DataFrame) -> NDArray[Any]:
    return known["kind"].to_numpy(object) if "kind" in known else np.full(len(known), "cap", dtype=object)


def _chosen(known: DataFrame) -> NDArray[np.bool_]:
    chosen = known["chosen"].to_numpy(object) if "chosen" in known else [False] * len(known)
    return np.array([value is True or value == 1 for value in chosen], dtype=bool)


def _full(known: DataFrame) -> NDArray[np.bool_]:
    """Which rows were measured in full: all of a table without stages, or where none got there."""
    full = (known["stage"] == "full").to_numpy(bool) if "stage" in known else np.ones(len(known), dtype=bool)
    return full if full.any() else np.ones(len(known), dtype=bool)


def _bars(ax: Axes, rows: DataFrame, **look: Any) -> None:
    """The 95% intervals of both figures."""
    ax.vlines(rows["harm"], rows["capability_low"], rows["capability_high"], **look)
    if {"harm_low", "harm_high"} <= set(rows.columns):
        ax.hlines(rows["capability"], rows["harm_low"], rows["harm_high"], **look)


def _front(rows: DataFrame) -> NDArray[np.float64]:
    """The settings that no other betters in both figures, by rising harm [n, 2]."""
    ordered = rows[["harm", "capability"]].sort_values(["harm", "capability"], ascending=[True, False])
    points: NDArray[np.float64] = ordered.to_numpy(np.float64).reshape(-1, 2)
    before = np.maximum.accumulate(np.append(-np.inf, points[:, 1]))[:-1]
    front: NDArray[np.float64] = points[points[:, 1] > before]
    return front


def _limits(known: DataFrame, full: NDArray[np.bool_], bound: float) -> tuple[float, float]:
    """From low to high: room for all that was measured in full, with its intervals; for the rest twice as far down."""
    ends = known.loc[full, ["capability", "capability_low", "capability_high"]].to_numpy(np.float64)
    low, high = min(np.nanmin(ends), -1.5 * bound), max(np.nanmax(ends), 0.5 * bound, known["capability"].max())
    within = known["capability"][known["capability"] >= low - (high - low)]
    low, pad = min(low, within.min()), 0.06 * (high - low) or 1.0
    return float(low - pad), float(high + pad)


def _cut(text: str, length: int = 38) -> str:
    """Long names, such as those with a path, lose their middle."""
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-(length // 2) :]}"


def _counted(count: int, text: str) -> str:
    return f"{count} setting{'s' * (count != 1)} {text}"


def _numbers(values: ArrayLike, what: str, count: int | None = None) -> NDArray[np.float64]:
    """As float64 [count]; NaN may be among them."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or (count is not None and len(array) != count):
        raise ValueError(f"{what}: expected {'a list of' if count is None else count} numbers, got shape {array.shape}")
    return array


def _end(values: NDArray[np.float64]) -> float:
    """The last value that is known."""
    known = values[np.isfinite(values)]
    if not len(known):
        raise ValueError("a curve holds no finite number")
    return float(known[-1])


def _wrapped(name: str) -> str:
    return "\n".join(wrap(name, 20))
