"""The bench's table as people read it: a suite at a time, a lever a line, a signal a column."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from persona_axis.bench.table import COST
from persona_axis.display.tables import number, plain_table

SHOWN = {
    "drift": ("adherence", "projection", "relevance", "distinct"),
    "personas": ("adherence", "projection", "fact_consistency", "contradiction", "self_consistency", "answers",
                 "relevance", "parroting"),
    "jailbreaks": ("refused", "adherence", "projection", "relevance"),
    "test": ("capability",),
    "cost": ("forwards a token", "seconds a token"),
}  # fmt: skip
"""What is worth a column in each suite; the rest stands in the file."""
FOOT = "in brackets: of none the 95% interval; else the difference from none with its interval, * = 0 lies outside it"


def by_suite(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """For each suite texts by lever and signal: the value, and the difference from "none" with its interval."""
    found = {}
    for suite, own in table.groupby("suite", sort=False):
        there = own["signal"].unique()
        names = [name for name in SHOWN.get(str(suite), there) if name in there]
        cells = {
            name: {row.lever: cell(row) for row in own[own["signal"] == name].itertuples() if not math.isnan(row.value)}
            for name in names
        }
        found[str(suite)] = pd.DataFrame(cells, index=list(own["lever"].unique())).fillna("")
    return found


def cell(row: object) -> str:
    """One figure, and in brackets what the lever changes, or where there is nothing to compare with its interval."""
    value, apart, low, high = (
        getattr(row, key) for key in ("value", "difference", "difference_low", "difference_high")
    )
    if math.isnan(apart):
        own = [getattr(row, key) for key in ("low", "high")]
        return f"{value:.3g}" if math.isnan(own[0]) else f"{number(value)} ({' to '.join(map(number, own))})"
    if math.isnan(low):
        return f"{value:.3g} ({apart:+.2g})"
    clear = "*" if low > 0 or high < 0 else ""
    return f"{number(value)} ({signed(apart)}: {signed(low)} {signed(high)}){clear}"


def signed(value: float) -> str:
    """With its sign, and not as -0.00."""
    text = f"{value:+.2f}"
    return "0" if float(text) == 0 else text


def markdown(table: pd.DataFrame, notes: Sequence[str] = ()) -> str:
    """The tables as a page has them, and below them what a reader should know."""
    parts = []
    for suite, cells in by_suite(table).items():
        lines = [f"| {suite} | {' | '.join(cells.columns)} |", "| --- " * (1 + len(cells.columns)) + "|"]
        lines += [f"| {lever} | {' | '.join(row)} |" for lever, row in zip(cells.index, cells.to_numpy(), strict=True)]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, *(["\n".join(f"- {note}" for note in notes)] if notes else []), ""])


def show_bench(console: Console, table: pd.DataFrame) -> None:
    """All suites, below each other; where one has too many columns for the terminal, its signals below each other."""
    for suite, cells in by_suite(table).items():
        wide = _grid(suite, cells)
        fits = console.measure(wide, options=console.options.update(max_width=10_000)).maximum <= console.width
        for part in [wide] if fits else [_grid(suite, cells[[name]]) for name in cells.columns]:
            console.print(part)
            console.print()
    console.print(Text(FOOT if set(table["suite"]) != {COST} else "", style="dim"))


def _grid(suite: str, cells: pd.DataFrame) -> Table:
    """Levers by signals. A figure may wrap, and is never cut."""
    shown = plain_table(suite, *cells.columns)
    for column in shown.columns:
        column.no_wrap, column.overflow = False, "fold"
    for lever, row in zip(cells.index, cells.to_numpy(), strict=True):
        shown.add_row(str(lever), *row)
    return shown
