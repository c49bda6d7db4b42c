"""Shows a calibration: what it is at while it runs, and at the end what was chosen and how it did on the other half."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from persona_axis.calibration.events import Event, Note, Planned, Saved, Stage
from persona_axis.display.progress import clock

if TYPE_CHECKING:
    from pandas import DataFrame

    from persona_axis.calibration.report import Calibration

_LINE_EVERY = 15.0


class CalibrationDisplay:
    """A listener for `calibrate`: a live bar in a terminal, a line now and then in a pipe or a log."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[what]}"), console=console,
            transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("calibrating", total=None, what="")
        self._began = self._said = time.monotonic()

    def __enter__(self) -> CalibrationDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:  # elsewhere the bar was never started, and stopping it prints a line
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case Planned(settings, replies, run_dir):
                self._line(f"plan: {settings} settings, about {replies:,} replies; what is measured stays in {run_dir}")
            case Note(text):
                self._line(f"note: {text}")
            case Saved(path):
                self._line(f"saved {path}")
            case Stage(stage, done, of, what):
                self._show(stage, done, of, what)

    def _show(self, stage: str, done: int, of: int, what: str) -> None:
        text = f"{done}/{of}, {clock(time.monotonic() - self._began)}, {what}"
        if self.console.is_terminal:
            self._bar.start()
            self._bar.update(self._task, description=stage, completed=done, total=of, what=text)
        elif done == of or time.monotonic() - self._said > _LINE_EVERY:
            self._said = time.monotonic()
            self._line(f"{stage}: {text}")

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def show_calibration(console: Console, found: Calibration) -> None:
    """The settings measured in full, then the chosen one and its controls on the other half, with 95% intervals."""
    full = found.table[found.table["stage"] == "full"]
    console.print(f"{len(found.table) - 1} settings tried, {len(full) - 1} measured in full; the train half:\n")
    console.print(_settings(full))
    if found.chosen is None:
        return
    console.print("\nThe held-out half, on which nothing was chosen:\n")
    console.print(_compared(found.held_out[found.held_out["kind"] != "control"]))
    controls = found.held_out[found.held_out["kind"] == "control"]
    if len(controls):
        console.print("\nControls: as many tokens, moved as far, along other directions:\n")
        console.print(_controls(controls))


def _settings(rows: DataFrame) -> Table:
    table = _grid("", "jailbreaks\nsucceed", "late turns\nAssistant", "capability,\npoints [95%]", "touched")
    for row in rows.to_dict("records"):
        table.add_row(
            f"{'* ' if row['chosen'] else ''}{row['setting']}", _number(row, "harm", ".3f"),
            _number(row, "drift_assistant", ".3f"), _ranged(row, "capability", "+.2f"), _percent(row, "touched"),
            style="bold" if row["chosen"] else "",
        )  # fmt: skip
    return table


def _compared(rows: DataFrame) -> Table:
    """Without a cap and with the chosen one, side by side."""
    both = rows.to_dict("records")
    lines = {
        "jailbreaks that succeed": [_ranged(row, "harm", ".3f") for row in both],
        "  a fall of": ["", *(_ranged(row, "reduction", ".0%") for row in both[1:])],
        "  without a persona": [_number(row, "harm_without_persona", ".3f") for row in both],
        "late turns read as Assistant": [_ranged(row, "drift_assistant", ".3f") for row in both],
        "  projection, read uncapped": [_ranged(row, "drift_projection", ".2f") for row in both],
        "capability, points": ["", *(_ranged(row, "capability", "+.2f") for row in both[1:])],
        "tokens touched x mean push": ["", *(_touched(row) for row in both[1:])],
    }
    table = _grid("", *(str(row["setting"]) for row in both))
    for name, cells in lines.items():
        table.add_row(name, *cells)
    return table


def _controls(rows: DataFrame) -> Table:
    table = _grid("", "draws", "jailbreaks\nsucceed", "fall: mean,\nlargest", "late turns\nas Assistant",
                  "capability,\npoints", "|cos| to\nthe axis")  # fmt: skip
    for kind, group in rows.groupby("control", sort=False):
        mean = {str(k): v for k, v in group.mean(numeric_only=True).items()}
        largest = {"reduction": group["reduction"].max()}
        table.add_row(
            str(kind), str(len(group)), _number(mean, "harm", ".3f"),
            f"{_percent(mean, 'reduction')}, {_percent(largest, 'reduction')}", _number(mean, "drift_assistant", ".3f"),
            _number(mean, "capability", "+.2f"), _number(mean, "cosine", ".2f"),
        )  # fmt: skip
    return table


def _grid(*headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for place, header in enumerate(headers):
        table.add_column(header, justify="right" if place else "left", vertical="bottom")
    return table


def _number(row: Any, name: str, form: str) -> str:
    value = row.get(name)
    return "" if value is None or value != value else format(value, form)


def _percent(row: Any, name: str) -> str:
    return _number(row, name, ".0%")


def _ranged(row: Any, name: str, form: str) -> str:
    value, low, high = (_number(row, f"{name}{end}", form) for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]" if low else value


def _touched(row: Any) -> str:
    share, size = _percent(row, "touched"), _number(row, "size", ".2f")
    return f"{share} x {size}" if share and size else share
