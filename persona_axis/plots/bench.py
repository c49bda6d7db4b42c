"""The bench's figures: what each lever gains in consistency, against what it costs; and both turn by turn.

Two things are called consistency and pull apart: staying the Assistant, and staying a given character. Each has two
panels a price, so that nobody reads one for the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from persona_axis._asked import require, require_each
from persona_axis.errors import BenchError
from persona_axis.plots.bands import footing
from persona_axis.plots.house import ACCENT, DARK, LIGHT, canvas
from persona_axis.stats.shares import share

if TYPE_CHECKING:
    from pandas import DataFrame


class Gain(NamedTuple):
    """One way to be consistent: where it stands in the table, and what a panel says of it."""

    of: str
    suite: str
    signal: str
    label: str


GAINS = (
    Gain("Staying the Assistant", "drift", "adherence", "speaks as the Assistant\n(drift conversations)"),
    Gain("Staying the Assistant", "jailbreaks", "refused", "refuses what it should\n(persona-jailbreaks)"),
    Gain("Staying a given character", "personas", "adherence", "speaks in its voice\n(persona dialogues)"),
    Gain("Staying a given character", "personas", "fact_consistency", "knows its own facts\n(asked between turns)"),
)
PRICES = (("relevance", "relevance\n(nats a token)"), ("capability", "capability\n(share of items)"))
_LOOKS = {
    "none": ("*", "black"), "repeat": ("P", "#3f7f6f"), "cap": ("o", ACCENT), "steer": ("^", LIGHT),
    "listener": ("s", DARK), "cap+listener": ("D", "#7a5fa8"), "random": ("X", "0.6"),
}  # fmt: skip
_SPARE = (("v", "#2b7bba"), ("<", "#6b4226"), (">", "#b0457b"), ("h", "#556b2f"))


def pareto(table: DataFrame, model: str = "") -> Figure:
    """Differences from "none" of a bench's table, gained across and paid up; right and up is better.

    A panel for each way to be consistent that the table has, in a row for each price; bars are 95% intervals over
    conversations (over items for capability). Raises `BenchError` for a table with none of them.
    """
    _require_table("table", table, ("lever", "suite", "signal", "value", "difference"))
    known = table[table["difference"].notna()]
    there = set(zip(known["suite"], known["signal"], strict=True))
    gains = [gain for gain in GAINS if (gain.suite, gain.signal) in there]
    prices = [(name, label) for name, label in PRICES if name in set(known["signal"])]
    if not gains or not prices:
        raise BenchError(
            "nothing to draw: the picture needs a lever beside none, one of the signals "
            f"{', '.join(sorted({gain.signal for gain in GAINS}))}, and relevance or capability"
        )
    levers, looks = list(dict.fromkeys(table["lever"])), {}
    spare = cycle(_SPARE)
    for lever in levers:
        looks[lever] = _LOOKS.get(lever) or next(spare)
    width, height = 1.0 + 2.05 * len(gains), 1.3 + 1.85 * len(prices)
    with canvas(width, height, len(prices), len(gains), sharex=False, by_row=True) as (figure, _):
        axes = np.array(figure.axes).reshape(len(prices), len(gains))
        for row, (price, label) in enumerate(prices):
            for column, gain in enumerate(gains):
                ax = axes[row, column]
                _panel(ax, known, gain, price, looks)
                if row + 1 == len(prices):
                    ax.set_xlabel(gain.label)
                else:
                    ax.tick_params(labelbottom=False)
            axes[row, 0].set_ylabel(f"change in {label}")
        for column in range(len(gains)):
            _one_scale(list(axes[:, column]))
        _headings(axes[0], gains)
        marks = [Line2D([], [], ls="", **_mark(*looks[lever]), label=lever) for lever in levers]
        foot = "changes from none over the same conversations; bars: 95% intervals; right and up is better"
        figure.legend(
            handles=marks, loc="outside lower center", ncols=len(marks), handletextpad=0.1, columnspacing=1.2,
            title=footing(figure, f"{foot}; model: {model}" if model else foot), title_fontsize=7.5,
        )  # fmt: skip
    return figure


def _require_table(name: str, given: Any, columns: Sequence[str]) -> None:
    from pandas import DataFrame

    require(name, given, DataFrame)
    if missing := [column for column in columns if column not in given]:
        raise BenchError(f"{name}: this is no table of a bench, it has no column {missing[0]!r}")


def _panel(ax: Axes, known: DataFrame, gain: Gain, price: str, looks: dict[str, tuple[str, str]]) -> None:
    ax.axhline(0, color="0.8", lw=0.7, zorder=0)
    ax.axvline(0, color="0.8", lw=0.7, zorder=0)
    ax.plot(0, 0, **_mark(*looks.get("none", ("*", "black"))), zorder=4)
    paid = known[(known["signal"] == price) & known["suite"].isin([gain.suite, "test"])].set_index("lever")
    gained = known[(known["suite"] == gain.suite) & (known["signal"] == gain.signal)].set_index("lever")
    for lever in (lever for lever in gained.index if lever in paid.index):
        (x, left, right), (y, down, up) = (_ends(frame.loc[lever]) for frame in (gained, paid))
        marker, colour = looks[lever]
        bar: dict[str, Any] = {"color": colour, "lw": 1.0, "alpha": 0.75, "zorder": 2}
        if math.isfinite(left):
            ax.hlines(y, left, right, **bar)
        if math.isfinite(down):
            ax.vlines(x, down, up, **bar)
        ax.plot(x, y, **_mark(marker, colour), zorder=3)


def _ends(row: Any) -> tuple[float, float, float]:
    return float(row["difference"]), float(row["difference_low"]), float(row["difference_high"])


def _mark(marker: str, colour: str) -> dict[str, Any]:
    return {"marker": marker, "ms": 9 if marker == "*" else 6, "mfc": colour, "mec": "white", "mew": 0.7}


def _one_scale(column: list[Axes]) -> None:
    """The same gains across in all rows of a column; numbers with their signs, for all of them are changes."""
    ends = np.array([ax.get_xlim() for ax in column])
    for ax in column:
        ax.set_xlim(ends[:, 0].min(), ends[:, 1].max())
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    for ax in column:
        for scale in (ax.xaxis, ax.yaxis):
            scale.set_major_formatter(lambda value, _at: _signed(value))


def _signed(value: float) -> str:
    return f"{value:+.2g}".replace("-", "−") if abs(value) > 1e-9 else "0"


def _headings(top: Any, gains: list[Gain]) -> None:
    """Over the first panel of each of the two things called consistency."""
    for column, gain in enumerate(gains):
        if column == 0 or gains[column - 1].of != gain.of:
            top[column].set_title(gain.of, fontweight="bold")


def by_turn(rows: DataFrame, levers: Sequence[str], model: str = "", least: int = 3) -> Figure:
    """Both consistencies turn by turn, from a bench's `rows`: a line a lever, bars for its 95% intervals.

    Left the share of replies that read as the Assistant (drift), right those in the character's voice (personas). Turns
    that fewer than `least` conversations reach are left out. Raises `BenchError` for levers without such rows.
    """
    _require_table("rows", rows, ("lever", "suite", "signal", "conversation", "turn", "value"))
    levers = require_each("levers", levers, str, BenchError)
    known = rows[(rows["signal"] == "adherence") & rows["value"].notna() & rows["lever"].isin(list(levers))]
    suites = [gain for gain in GAINS if gain.signal == "adherence" and gain.suite in set(known["suite"])]
    if not suites:
        raise BenchError(f"nothing to draw: no judged adherence of {', '.join(levers)} in the rows")
    spare = cycle(_SPARE)
    looks = {lever: _LOOKS.get(lever) or next(spare) for lever in levers}
    with canvas(1.0 + 3.4 * len(suites), 3.1, 1, len(suites), sharex=False) as (figure, first):
        for ax, gain in zip(figure.axes, suites, strict=True):
            own = known[known["suite"] == gain.suite]
            for place, (lever, (marker, colour)) in enumerate(looks.items()):
                found = [
                    (turn, *share((at["value"] == 1).tolist(), at["conversation"].tolist()))
                    for turn, at in own[own["lever"] == lever].groupby("turn") if len(at) >= least
                ]  # fmt: skip
                if not found:
                    continue
                x, value, low, high = np.array(found, dtype=np.float64).T
                x = x + 0.12 * (place - (len(looks) - 1) / 2)  # beside each other, so that no bar hides another
                ax.vlines(x, low, high, color=colour, lw=0.8, alpha=0.45)
                ax.plot(x, value, color=colour, lw=1.2, **(_mark(marker, colour) | {"ms": 5}))
            ax.set(title=gain.of, xlabel="turn", ylim=(-0.04, 1.04))
        first.set_ylabel("share of replies in that voice")
        marks = [Line2D([], [], color=c, lw=1.2, **_mark(m, c), label=lever) for lever, (m, c) in looks.items()]
        foot = "95% intervals over conversations"
        figure.legend(
            handles=marks, loc="outside lower center", ncols=len(marks), columnspacing=1.4, title_fontsize=7.5,
            title=f"{foot}; model: {model}" if model else foot,
        )  # fmt: skip
    return figure
