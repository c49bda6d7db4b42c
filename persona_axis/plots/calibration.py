"""Figures of levers: what a dose of steering does, and what the settings of a cap gain and cost."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from persona_axis.plots import pareto
from persona_axis.plots.bands import LOOKS, Name, footing, headline, names_beside, ribbon
from persona_axis.plots.house import canvas, titled

if TYPE_CHECKING:
    from pandas import DataFrame

_DOSE = "steering strength α (parts of the stream's mean norm; > 0: toward the Assistant)"
_GREYS = (("0.7", "-", "o"), ("0.7", (0, (4, 1.5)), "x"), ("0.6", (0, (1, 1.2)), "s"), ("0.7", "-.", "v"))
_ASIDE = 0.022  # of the scale: how far apart kinds of controls stand that were measured at the same strength


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
    draw one thin line, several kinds a little side by side; NaN where a strength was not measured. With `share` the
    values are shares in [0, 1].
    """
    doses = _numbers(alphas, "alphas")
    if not 1 <= len(series) <= len(LOOKS) or len(controls or {}) > len(_GREYS):
        raise ValueError(f"{len(series)} series, {len(controls or {})} kinds of controls: at most 4 can be told apart")
    order = np.argsort(doses, kind="stable")
    doses, names, draws = doses[order], [], 0
    keys: dict[str, Line2D] = {}
    aside = _sideways(doses, len(controls or {}))
    with canvas(5.8, 3.4) as (figure, ax):
        for (kind, given), (colour, line, marker), shift in zip((controls or {}).items(), _GREYS, aside, strict=False):
            rows = np.atleast_2d(np.asarray(given, np.float64))
            if rows.ndim != 2 or rows.shape[1] != len(doses) or not len(rows):
                raise ValueError(f"control {kind}: expected [draws, {len(doses)}], got shape {np.shape(given)}")
            look: dict[str, Any] = {"color": colour, "ls": line, "lw": 0.6, "marker": marker, "mfc": "white"}
            look |= {"mec": "0.35", "mew": 0.6}
            for row in rows[:, order]:
                held = np.isfinite(row)
                ax.plot(doses[held] + shift, row[held], ms=2.8, zorder=1.5, **look)
            draws += len(rows)
            keys[f"{kind} ({len(rows)})"] = Line2D([], [], ms=3.5, **look)
        for (name, (value, low, high)), (colour, line, marker) in zip(series.items(), LOOKS, strict=False):
            value, low, high = (_numbers(v, name, len(doses))[order] for v in (value, low, high))
            ribbon(ax, doses, low, high, colour, line)
            ax.plot(doses, value, color=colour, ls=line, marker=marker, ms=4, lw=1.6, mec="white", mew=0.5, zorder=3)
            names.append(Name(_wrapped(name), _end(value), colour, "bold"))
        ax.axvline(0, color="0.6", lw=0.7, zorder=0.5)
        if share:
            ax.set_ylim(-0.03, 1.03)
            ax.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
        ax.set_ylim(ax.get_ylim())
        told = "band: 95% interval" + (f"; grey: {draws} control{'s' * (draws != 1)}, one line each" if draws else "")
        told += ", kinds moved a little aside" * (len(keys) > 1)
        ax.set_xlabel(footing(figure, xlabel, told, note), parse_math=False)
        ax.set_ylabel("\n".join(wrap(ylabel, 26, break_on_hyphens=False)))
        ax.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}".replace("-", "−"))
        headline(figure, titled("Dose and response of steering", layer), keys)
        names_beside(ax, names)
    return figure


def calibration_pareto(table: DataFrame, bound: float, *, title: str = "What a cap gains and what it costs") -> Figure:
    """Settings of a cap by the harm that is left (across, less is better) and the capability kept (up, more is better).

    table: one row a setting with `setting`, `harm` (share in [0, 1]), `capability`, `capability_low`,
    `capability_high` (points, negative = lost); and where it has them `harm_low`, `harm_high`, `chosen`, `kind`
    ("none", "cap", "control"), `control` (a kind of control) and `stage`: all but "full" are drawn small. Bars that
    would make a grid, those of such settings and of more than 12 controls, are left out and their width is told.
    Settings that cost far more than the others stand as triangles at the lower edge; ×3 marks a place that three share.
    bound: the loss that is allowed, in points. Settings without harm or capability are left out and counted.
    """
    missing = {"setting", "harm", "capability", "capability_low", "capability_high"} - set(table.columns)
    if missing:
        raise ValueError(f"table: has no column {', '.join(sorted(missing))}")
    known = table[table["harm"].notna() & table["capability"].notna()].reset_index(drop=True)
    if not len(known):
        raise ValueError("table: no setting has a harm and a capability")
    named = pareto.groups(known)
    barred = np.any([group.rows for group in named.values() if group.bar] or [np.ones(len(known), bool)], axis=0)
    front = pareto.front(known[pareto.measured_in_full(known) & (pareto.kinds_of(known) == "cap")])
    with canvas(6.4, 4.2) as (figure, ax):
        low, high = pareto.limits(known, barred, bound)
        xy = known[["harm", "capability"]].to_numpy(np.float64, copy=True)
        outside = xy[:, 1] < low
        xy[outside, 1] = low
        ax.axhspan(low, -bound, color="0.94", lw=0, zorder=0)
        ax.axhline(0, color="0.6", lw=0.7, zorder=0.5)
        for above, group in enumerate(named.values()):
            if group.bar:
                pareto.bars(ax, known[group.rows], **group.bar)
            ax.plot(*xy[group.rows & ~outside].T, ls="none", zorder=3 + 0.1 * above, **group.mark)
        if outside.any():
            ax.plot(*xy[outside].T, "v", color="0.55", ms=5, clip_on=False, zorder=4)
        ax.plot(*front.T, color="0.35", lw=0.9, ls=(0, (1, 1.5)), zorder=1.3)
        right = max([*xy[:, 0], *(known["harm_high"][barred].dropna() if "harm_high" in known else [])])
        ax.set(xlim=(-0.03 * right - 0.005, 1.04 * right + 0.005), ylim=(low, high))
        ax.xaxis.set_major_formatter(lambda x, _: f"{round(100 * x, 6):g}%")
        ax.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
        ax.set_ylabel("change of capability (points; < 0: lost)")
        told = ["harm: share of persona-jailbreaks that succeed", pareto.about_bars(known, named)]
        if len(front) > 1:
            told.append("dotted: caps that none betters in both")
        counts = pareto.shared(ax, xy, named)
        if counts:
            told.append("×2: two settings at one place")
        if outside.any():
            told.append(
                _counted(int(outside.sum()), f"below the edge, down to −{-known['capability'].min():.0f} points")
            )
        if len(known) < len(table):
            told.append(_counted(len(table) - len(known), "not drawn: harm or capability unknown"))
        if "chosen" in table and not pareto.chosen(table).any():
            told.append("no setting was chosen")
        ax.set_xlabel(footing(figure, told[0], "; ".join(told[1:])))
        counted = {name: f"{name} ({int(group.rows.sum())})" for name, group in named.items()}
        picked = known["setting"][pareto.chosen(known)]
        counted |= {"no cap": "no cap", "chosen": _cut(f"chosen: {', '.join(picked)}")}
        keys = {counted[name]: Line2D([], [], ls="none", **group.mark) for name, group in reversed(named.items())}
        headline(figure, title, keys)
        names_beside(ax, [Name(f"allowed loss:\n{bound:g} point{'s' * (bound != 1)}", -bound, "0.35")])
        pareto.write_counts(ax, counts, xy, known, named)
    return figure


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


def _sideways(doses: NDArray[np.float64], kinds: int) -> NDArray[np.float64]:
    """How far each kind of control is moved along the doses, so that kinds alike in value do not hide each other."""
    gaps = np.diff(np.unique(doses))
    step = min(_ASIDE * float(np.ptp(doses)), 0.6 * float(gaps.min()) / max(kinds, 1)) if len(gaps) else 0.05
    shifts: NDArray[np.float64] = np.float64(step) * (np.arange(kinds) - (kinds - 1) / 2)
    return shifts


def _end(values: NDArray[np.float64]) -> float:
    """The last value that is known."""
    known = values[np.isfinite(values)]
    if not len(known):
        raise ValueError("a curve holds no finite number")
    return float(known[-1])


def _wrapped(name: str) -> str:
    return "\n".join(wrap(name, 20))
