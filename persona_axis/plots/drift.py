"""Figures of drift: where conversations go along the axis, with and without a lever, and which messages push them.

The tables are those of `drift` and `drivers`; every figure says how many conversations it stands on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray

from persona_axis.plots.bands import (
    LOOKS,
    Name,
    band_names,
    footing,
    headline,
    names_above,
    names_beside,
    percentile_bands,
    ribbon,
    shade,
    turn_ticks,
)
from persona_axis.plots.calibration import calibration_pareto, dose_response
from persona_axis.plots.conversation import one_conversation
from persona_axis.plots.courses import FEWEST, Centre, Course, all_domains, by_domain, summary
from persona_axis.plots.house import ACCENT, UNITS, canvas, every, titled

__all__ = [
    "calibration_pareto", "capped_against_uncapped", "dose_response", "drift_by_kind", "one_conversation",
    "trajectories_by_domain",
]  # fmt: skip

if TYPE_CHECKING:
    from pandas import DataFrame

    from persona_axis.axis import Axis

_COLUMNS = 4
_SINGLY = 40  # more conversations than this in one panel are a grey mass, and are not drawn one by one


def trajectories_by_domain(
    frame: DataFrame, layer: int, axis: Axis | None = None, *, centre: Centre = "median", note: str = ""
) -> Figure:
    """Projection by turn, one panel a domain: the median (or mean) of the conversations and its 95% interval.

    frame: the tidy table, of which the assistant's turns at `layer` are taken. With `axis`, the percentiles 5-95
    of its default and roles are shaded. Up to 40 conversations a domain are also drawn singly, thin. `note` is
    put below.
    """
    courses = {"": by_domain(frame, layer)}
    title = titled("Projection on the axis, turn by turn", layer)
    return _panels(courses, layer, axis, centre, title, {}, note)


def capped_against_uncapped(
    frames: Mapping[str, DataFrame],
    layer: int,
    axis: Axis | None = None,
    *,
    centre: Centre = "median",
    bounds: Mapping[str, float] | None = None,
    note: str = "",
) -> Figure:
    """Several ways to hold the same conversations, up to four, in one panel a domain: name -> tidy table.

    With a cap on, the projection at a capped layer lies inside its bounds by construction: give the table of the
    capped text read again without the cap, and say so in `note`. bounds: named heights to draw, such as a floor.
    """
    if not 1 <= len(frames) <= len(LOOKS):
        raise ValueError(f"{len(frames)} tables: at most {len(LOOKS)} can be told apart in one figure")
    courses = {name: by_domain(frame, layer, name) for name, frame in frames.items()}
    what = " against ".join(frames) if len(frames) == 2 else "Projection on the axis"
    title = titled(f"{what}, turn by turn", layer)
    return _panels(courses, layer, axis, centre, title, bounds or {}, note)


def drift_by_kind(
    changes: DataFrame,
    layer: int | None = None,
    axis: Axis | None = None,
    *,
    groups: Mapping[str, str] | None = None,
    note: str = "",
) -> Figure:
    """How far the projection moves when the user sends each kind of message, with 95% intervals, largest gain first.

    changes: one row a kind with `kind`, `turns`, `change`, `low`, `high` (as `drivers.changes_by_kind` gives), and
    where it has `level` (with `level_low`, `level_high`) a second panel with the projection after that kind, over
    the axis' percentiles. groups: kind -> name of its group, up to four, told by marker and colour.
    """
    missing = {"kind", "turns", "change", "low", "high"} - set(changes.columns)
    if missing:
        raise ValueError(f"changes: has no column {', '.join(sorted(missing))}")
    held = changes[changes["change"].notna()].sort_values("change", ascending=False, kind="stable")
    if not len(held):
        raise ValueError("changes: no kind of message has a change")
    named = [(groups or {}).get(kind, "") for kind in held["kind"]]
    group_names = list(dict.fromkeys(named))
    if len(group_names) > len(LOOKS):
        raise ValueError(f"{len(group_names)} groups of kinds: at most {len(LOOKS)} can be told apart in one figure")
    levels = "level" in held and bool(held["level"].notna().any())
    bands = percentile_bands(axis, layer) if levels else []
    with canvas(6.8 if levels else 5.0, 1.45 + 0.19 * len(held), 1, 1 + levels, sharex=False) as (figure, first):
        shown = [("change", "low", "high"), ("level", "level_low", "level_high")][: 1 + levels]
        for ax, columns in zip(figure.axes, shown, strict=True):
            numbers = held[list(columns)].to_numpy(np.float64)
            for group, look in zip(group_names, LOOKS, strict=False):
                _intervals(ax, numbers, [name == group for name in named], look)
            ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            ax.grid(axis="y", color="0.9", lw=0.6)
            ax.tick_params(axis="y", length=0)
            ax.spines["left"].set_visible(False)
            ax.set_axisbelow(True)
        first.axvline(0, color="0.25", lw=0.8, zorder=1)
        turns = [f"{kind}  ({count:,})" for kind, count in zip(held["kind"], held["turns"], strict=True)]
        first.set_yticks(range(len(held)), turns, parse_math=False)
        first.set_ylim(len(held) - 0.4, -0.6)
        first.set_xlabel(f"change from the reply before\n({UNITS})")
        keys = {
            group: Line2D([], [], ls="none", marker=marker, ms=5, color=colour)
            for group, (colour, _, marker) in zip(group_names, LOOKS, strict=False)
        }
        title = titled("Projection by kind of the user's message", layer)
        headline(figure, title, None if group_names == [""] else keys)
        key = "larger = more Assistant; in brackets: number of turns; bars: 95% intervals"
        if held[["low", "high"]].isna().any(axis=None):
            key += "; hollow: too few conversations for one"
        figure.supxlabel(footing(figure, key, note), size=8, parse_math=False)
        if levels:
            after = figure.axes[1]
            shade(after, bands, upright=True)
            after.set_xlabel(f"projection of the reply\n({UNITS})")
            names_above(after, band_names(bands))
    return figure


def _intervals(ax: Axes, numbers: NDArray[np.float64], chosen: Sequence[bool], look: tuple[str, Any, str]) -> None:
    """Points with their intervals, one a row of `numbers` (value, low, high) that is chosen, from the top down."""
    colour, _, marker = look
    for row, (value, low, high) in enumerate(numbers):
        if chosen[row]:
            known = bool(np.isfinite(low) and np.isfinite(high))
            ax.plot([low, high], [row, row], color=colour, lw=1.6, solid_capstyle="butt", zorder=2)
            face, edge, width = (colour, "white", 0.6) if known else ("white", colour, 1.1)
            ax.plot(value, row, marker, ms=5.5, mfc=face, mec=edge, mew=width, ls="none", zorder=3)


def _panels(
    courses: Mapping[str, Mapping[str, Course]],
    layer: int,
    axis: Axis | None,
    centre: Centre,
    title: str,
    bounds: Mapping[str, float],
    note: str,
) -> Figure:
    """The figures of this module that have one panel a domain; courses: name of the table -> domain -> course."""
    domains = all_domains(courses.values())
    bands = percentile_bands(axis, layer)
    rows = -(-len(domains) // _COLUMNS)
    columns = -(-len(domains) // rows)
    width, height = ((4.4, 2.2), (5.4, 1.9), (6.4, 1.85), (7.4, 1.85))[columns - 1]
    with canvas(width, 1.3 + height * rows, rows, columns) as (figure, first):
        for at, (ax, domain) in enumerate(zip(figure.axes, domains, strict=False)):
            shade(ax, bands)
            for height in bounds.values():
                ax.axhline(height, color=ACCENT, lw=1.0, ls=(0, (4, 2)), zorder=1)
            held = [(one[domain], look) for one, look in zip(courses.values(), LOOKS, strict=False) if domain in one]
            for course, look in held:
                singly = len(courses) == 1 and 1 < len(course.values) <= _SINGLY
                if singly:
                    _each(ax, course)
                _curve(ax, course, centre, look, edged=not singly)  # edges would pass for conversations
            _head(ax, domain or "no domain" * (len(domains) > 1), [course for course, _ in held], 44 // columns + 8)
            ax.tick_params(axis="x", labelbottom=at + columns >= len(domains))
        for ax in figure.axes[len(domains) :]:
            ax.set_visible(False)
        turns = np.concatenate([course.turns for one in courses.values() for course in one.values()])
        first.set_xlim(turns.min() - 0.7, turns.max() + 0.7)
        first.xaxis.set_major_locator(FixedLocator(turn_ticks(int(turns.min()), int(turns.max()))))
        first.set_ylim(first.get_ylim())  # from here on nothing moves
        label_y = first.set_ylabel if rows == 1 else figure.supylabel
        label_y(f"projection ({UNITS})\nlarger = more Assistant", size=8.5)
        figure.supxlabel(footing(figure, "assistant turn", *_key(courses, centre), note), size=8, parse_math=False)
        edge = domains[columns - 1]
        beside = len(courses) > 1 and all(edge in one for one in courses.values())  # else no panel has all ends
        keys = {
            name: Line2D([], [], color=colour, ls=line, marker=marker, ms=3)
            for name, (colour, line, marker) in zip(courses, LOOKS, strict=False)
        }
        headline(figure, title[:1].upper() + title[1:], None if beside or len(courses) == 1 else keys)
        names = [*band_names(bands), *(Name(text, height, ACCENT) for text, height in bounds.items())]
        if beside:
            for (name, one), (colour, _, _) in zip(courses.items(), LOOKS, strict=False):
                end = float(summary(one[edge].values[:, -1:], centre).centre[0])
                names.append(Name("\n".join(wrap(name, 20)), end, colour, "bold"))
        names_beside(figure.axes[columns - 1], names)
    return figure


def _each(ax: Axes, course: Course) -> None:
    """Every conversation a thin line, fainter where there are many."""
    look: dict[str, Any] = {"color": "0.2", "lw": 0.6, "marker": "." if len(course.turns) == 1 else ""}
    ax.plot(course.turns, course.values.T, alpha=0.5 * min(1.0, (16 / len(course.values)) ** 0.5), zorder=2.5, **look)


def _curve(ax: Axes, course: Course, centre: Centre, look: tuple[str, Any, str], edged: bool) -> None:
    colour, line, marker = look
    middle, low, high = summary(course.values, centre)
    ribbon(ax, course.turns, low, high, colour, line if edged else None)
    if not edged:
        ax.plot(course.turns, middle, color="white", lw=2.8, zorder=2.8)  # sets it off from the conversations
    marks: dict[str, Any] = {"marker": marker, "ms": 3, "mec": "white", "mew": 0.4}
    ax.plot(course.turns, middle, color=colour, ls=line, lw=1.4, zorder=3, markevery=every(course.turns, 12), **marks)


def _head(ax: Axes, domain: str, courses: Sequence[Course], width: int) -> None:
    """The panel's title: its domain, and below how many conversations it stands on, at most and at least."""
    counts = np.concatenate([course.counts for course in courses])
    most, least = int(counts.max()), int(counts.min())
    told = f"{most:,} conversation{'s' * (most != 1)}" if most == least else f"{most:,} → {least:,} conversations"
    title = "\n".join(wrap(domain, width))
    ax.set_title(title, pad=13 if domain else 6, fontsize=8.5, fontweight="bold", parse_math=False)
    ax.annotate(
        told, (0, 1), xycoords="axes fraction", xytext=(0, 3), textcoords="offset points", fontsize=7.5, color="0.35"
    )


def _key(courses: Mapping[str, Mapping[str, Course]], centre: Centre) -> list[str]:
    """What the marks of the panels mean, as far as they are there."""
    held = [course for one in courses.values() for course in one.values()]
    if all(len(course.values) == 1 for course in held):
        return ["(single conversations: no interval)"]
    told = [f"line: {centre} of the conversations", "band: its 95% interval"]
    if len(courses) == 1 and any(1 < len(course.values) <= _SINGLY for course in held):
        told.append("thin: single conversations")
    few = any((course.counts < FEWEST).any() for course in held)
    return ["; ".join(told), *([f"(no interval for fewer than {FEWEST} conversations)"] if few else [])]
