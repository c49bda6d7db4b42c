"""What the terminal shows of signals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from persona_axis.display.tables import number, plain_table
from persona_axis.signals.table import Signal


def show_signals(console: Console, signals: Sequence[Signal]) -> None:
    """A line for each signal: its mean with an interval, its range, what stands behind it."""
    table = plain_table("signal", "mean", "95% interval", "range", "rows", "unjudged", "more is")
    for one in signals:
        value, low, high = one.estimate
        interval = "" if math.isnan(low) else f"{number(low)} to {number(high)}"
        bounds = f"{one.low:g} to {one.high:g}" if math.isfinite(one.low) else "unbounded"
        mean = "" if math.isnan(value) else number(value)
        table.add_row(one.name, mean, interval, bounds, str(one.rows), str(one.unjudged), one.means)
    console.print(table)
    if judges := sorted({one.judge for one in signals if one.judge}):
        console.print(Text(f"judge: {', '.join(judges)}", style="dim"))
