"""What the terminal shows of a table of turns, and its picture. Rendering only: the numbers come from `Account`."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from persona_axis.display.tables import number, plain_table, printable
from persona_axis.files.safefile import replace_file
from persona_axis.trajectories.account import DRAWN_CONVERSATIONS, DRAWN_TURNS, NAMED_ALERTS, Account, Cell, Turns

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from persona_axis.axis import Axis
    from persona_axis.conversations import Conversation
    from persona_axis.drift import Alarm

Place = Callable[[float], float]
"""A projection's percentile among the default's replies."""


def place_in(axis: Axis, layer: int) -> Place | None:
    """How to place a projection, if the axis file knows where the default's replies lie."""
    if "quantiles_default" not in axis.arrays:
        return None
    from persona_axis.drift import percentiles

    return lambda value: float(percentiles(axis, layer, value))


def show_account(console: Console, account: Account, place: Place | None) -> None:
    """The mean projection of each domain, turn by turn; where the terminal is too narrow a sentence a turn."""
    domains = account.domains()
    names = [" ".join(printable(domain).split()) for domain in domains]
    table = plain_table("turn", *(escape(name) or "projection" for name in names))
    cells = {turns: [_cell(account, domain, turns, place) for domain in domains] for turns in account.lines()}
    marks = [max(len(row[column].mark) for row in cells.values()) for column in range(len(domains))]
    for turns, row in cells.items():
        texts = (told + mark.ljust(width) for (told, mark), width in zip(row, marks, strict=True))
        table.add_row(str(turns), *(Text(text) for text in texts))
    needs = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    if needs <= console.width:
        console.print(table)
    else:
        for turns, row in cells.items():
            said = (f"{name} {told}{mark}".strip() for name, (told, mark) in zip(names, row, strict=True) if told)
            console.print(Text(f"turn {turns}: {', '.join(said)}"))
    console.print(Text(_caption(account, place), style="dim"))


def show_alerts(console: Console, account: Account, alarm: Alarm, percentile: float) -> None:
    """Which turns raise an alert, and how many of a healthy model's would."""
    series = f", {alarm.run} turns in a row" if alarm.run > 1 else ""
    where = f"below {number(alarm.threshold)}, percentile {percentile:g} of the default at layer {alarm.layer}{series}"
    healthy = (
        f"about {percentile:g}% of healthy turns lie below percentile {percentile:g}, as far as they are like the "
        "single replies that it was taken from; in long conversations more may"
    )
    if not account.alerts:
        console.print(Text(f"no alert: no turn {where} ({healthy})"))
        return
    told = (
        f"alert: {account.alerts:,} of {account.turns:,} turns ({account.alerts / account.turns:.1%}) in "
        f"{account.alerted:,} of {account.conversations:,} conversations {where} ({healthy})"
    )
    console.print(Text(told, style="bold red"))
    for line in account.named:
        console.print(Text(f"  {printable(line)}"))
    if account.alerted > NAMED_ALERTS:
        console.print(Text(f"  and {account.alerted - NAMED_ALERTS:,} more"))


def save_figure(
    account: Account, axis: Axis, path: Path, first: Conversation | None, tell: Callable[[str], None]
) -> bool:
    """Draw the trajectories by domain, or the `first` conversation with its text if there was but one.

    False where there is no projection to draw, and where it cannot be written, which is told: a picture is not worth
    an exit code that says something else than the measurement.
    """
    frame = account.drawn()
    if not frame["projection"].notna().any():
        return False
    content = BytesIO()
    try:
        _figure(account, frame, axis, first).savefig(content, format=path.suffix[1:].lower())
        replace_file(Path(os.path.realpath(path)), content.getvalue())
    except OSError as error:
        tell(f"note: {path}: the figure could not be saved: {error.strerror or error}")
        return False
    return True


def _figure(account: Account, frame: pd.DataFrame, axis: Axis, first: Conversation | None) -> Figure:
    if account.conversations == 1 and first is not None:
        from persona_axis.plots.conversation import one_conversation

        return one_conversation(frame, first.messages, account.layer, axis)
    from persona_axis.plots.drift import trajectories_by_domain

    notes = []
    if account.conversations > DRAWN_CONVERSATIONS:
        notes.append(f"{DRAWN_CONVERSATIONS} of {account.conversations:,} conversations, drawn by chance")
    if account.lines()[-1].last > DRAWN_TURNS:
        notes.append(f"the first {DRAWN_TURNS} turns at most")
    notes += ["under a cap, whose layers lie inside its bounds by construction"] if account.has_before else []
    return trajectories_by_domain(frame, account.layer, axis, note="; ".join(notes))


class _Told(NamedTuple):
    """A cell of the table: its figures, and how many alerts it holds."""

    told: str
    mark: str = ""


def _cell(account: Account, domain: str, turns: Turns, place: Place | None) -> _Told:
    cell = account.cells.get((domain, turns), Cell())
    if not cell.count:
        return _Told("silent" if cell.silent else "")
    told = number(cell.mean) + (f" p{place(cell.mean):.0f}" if place else "")
    if account.has_before:
        told += f" ({number(cell.mean_before)})"
    first = account.cells.get((domain, Turns(1, 1)), Cell())
    told += f" n={cell.count:,}" if cell.count != first.count else ""
    return _Told(told, f" !{cell.alerts:,}" if cell.alerts else "")


def _caption(account: Account, place: Place | None) -> str:
    conversations = f"{account.conversations:,} conversation{'s' * (account.conversations != 1)}"
    told = [
        f"Mean projection of the assistant's turns at layer {account.layer} in residual-stream units, larger = more "
        f"Assistant; {conversations}, {account.turns:,} turns."
    ]
    if place:
        told.append("p: where the mean lies among the default's replies, 0 to 100.")
    if account.has_before:
        told.append("In brackets: what the cap found at this layer.")
    if account.alerts:
        told.append("!: turns with an alert.")
    if silent := sum(cell.silent for cell in account.cells.values()):
        told.append(f"{silent:,} of the turns have no tokens and no projection.")
    return " ".join(told)
