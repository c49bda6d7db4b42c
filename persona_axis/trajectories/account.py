"""What a table of turns comes to, kept while it streams by: its memory does not grow with the table."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from persona_axis.drift import Alarm

MOST_DOMAINS = 12
OTHERS = "(others)"
SINGLE_TURNS = 20
"""Turns that have a line of their own; later ones share a line, 21-40, 41-80 and so on."""
DRAWN_CONVERSATIONS, DRAWN_TURNS = 400, 200
"""What a figure is made of at most."""
NAMED_ALERTS = 10
ROWS_AT_ONCE = 20_000


class Turns(NamedTuple):
    """Consecutive turn numbers, both ends included."""

    first: int
    last: int

    @classmethod
    def with_(cls, turn: int) -> Turns:
        """The line that a turn belongs to."""
        if turn <= SINGLE_TURNS:
            return cls(turn, turn)
        first = SINGLE_TURNS + 1
        last = 2 * SINGLE_TURNS
        while turn > last:
            first, last = last + 1, 2 * last
        return cls(first, last)

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass
class Cell:
    """The projections of one domain at one line of turns. `silent` counts replies without any token."""

    count: int = 0
    total: float = 0.0
    before: float = 0.0
    lowest: float = math.inf
    alerts: int = 0
    silent: int = 0

    @property
    def mean(self) -> float:
        """Mean projection; not a number where all replies are silent."""
        return self.total / self.count if self.count else math.nan

    @property
    def mean_before(self) -> float:
        """Likewise, before what held the model."""
        return self.before / self.count if self.count else math.nan

    def add(self, value: float, before: float, alert: bool) -> None:
        """Count one turn."""
        if math.isnan(value):
            self.silent += 1
            return
        self.count += 1
        self.total += value
        self.before += before
        self.lowest = min(self.lowest, value)
        self.alerts += alert


@dataclass
class Account:
    """Fed with `add`, frame after frame in order; only the assistant's rows at `layer` count."""

    layer: int
    cells: dict[tuple[str, Turns], Cell] = field(default_factory=dict)
    """By domain ("" for none) and line."""
    conversations: int = 0
    turns: int = 0
    alerts: int = 0
    alerted: int = 0
    """Conversations with alerts."""
    named: list[str] = field(default_factory=list)
    """The first of these."""
    has_before: bool = False
    """Whether something held the model, so that there is a projection before and after it."""
    _drawn: list[pd.DataFrame] = field(default_factory=list)
    _rng: random.Random = field(default_factory=lambda: random.Random(0))
    _last: str | None = None
    _last_alerted: str | None = None

    def add(self, frame: pd.DataFrame) -> None:
        """Count the turns of a frame, which may go on with the conversation of the last one."""
        rows = frame[(frame["layer"] == self.layer) & (frame["speaker"] == "assistant")]
        self.has_before = self.has_before or "projection_before" in rows
        for name, talk in rows.groupby("conversation", sort=False):
            self._count(str(name), talk)

    def domains(self) -> list[str]:
        """The domains in the order they came."""
        return list(dict.fromkeys(domain for domain, _ in self.cells))

    def lines(self) -> list[Turns]:
        """The lines of turns that any domain has, rising."""
        return sorted({turns for _, turns in self.cells})

    def drawn(self) -> pd.DataFrame:
        """A table for a figure: the first `DRAWN_TURNS` of `DRAWN_CONVERSATIONS` drawn by chance, or all if fewer."""
        import pandas as pd

        frame = pd.concat(self._drawn, ignore_index=True)
        if OTHERS in self.domains():
            frame = frame.drop(columns="domain")
        return frame

    def _count(self, name: str, talk: pd.DataFrame) -> None:
        goes_on, self._last = name == self._last, name
        self.conversations += not goes_on
        self.turns += len(talk)
        domain = self._known(talk["domain"].iloc[0])
        before = talk["projection_before" if self.has_before else "projection"]
        alerts = talk["alert"] if "alert" in talk else [False] * len(talk)
        below = []
        for turn, value, was, alert in zip(talk["turn"], talk["projection"], before, alerts, strict=True):
            self.cells.setdefault((domain, Turns.with_(int(turn))), Cell()).add(float(value), float(was), bool(alert))
            below += [int(turn)] if alert else []
        self.alerts += len(below)
        if below and name != self._last_alerted:
            self._last_alerted = name
            self.alerted += 1
            if len(self.named) < NAMED_ALERTS:
                self.named.append(f"{name}: turn{'s' * (len(below) > 1)} {told_turns(below)}")
        if not goes_on:
            self._draw(talk)

    def _known(self, domain: Any) -> str:
        """A domain as the cells name it: "" for none, and one name for all that come too late to have their own."""
        name = domain if isinstance(domain, str) else ""
        known = self.domains()
        return name if name in known or len(known) < MOST_DOMAINS else OTHERS

    def _draw(self, talk: pd.DataFrame) -> None:
        """Keep conversations for the figure, each as likely as any other (reservoir sampling)."""
        columns = ["conversation", "domain", "turn", "speaker", "layer", "projection"]
        part = talk[columns].head(DRAWN_TURNS)
        if len(self._drawn) < DRAWN_CONVERSATIONS:
            self._drawn.append(part)
        elif (place := self._rng.randrange(self.conversations)) < DRAWN_CONVERSATIONS:
            self._drawn[place] = part


def gathered(frames: Iterable[pd.DataFrame], rows: int = ROWS_AT_ONCE) -> Iterator[pd.DataFrame]:
    """The same rows in frames of about so many: a Parquet file of a frame a conversation would be large and slow."""
    import pandas as pd

    held: list[pd.DataFrame] = []
    count = 0
    for frame in frames:
        held.append(frame)
        count += len(frame)
        if count >= rows:
            yield pd.concat(held, ignore_index=True)
            held, count = [], 0
    if held:
        yield pd.concat(held, ignore_index=True)


def marked(frames: Iterable[pd.DataFrame], alarm: Alarm) -> Iterator[pd.DataFrame]:
    """The frames with a column `alert`, true in the rows at the alarm's layer that raise one.

    A long conversation comes in several frames, and a series may begin in one and be long enough in the next only:
    frames are held back until nothing about them can change.
    """
    held: deque[pd.DataFrame] = deque()
    for frame in frames:
        if held and len(frame) and held[-1]["conversation"].iloc[-1] != frame["conversation"].iloc[0]:
            yield from held
            held.clear()
        held.append(frame.assign(alert=False))
        found = alarm(frame)
        below = set(zip(found["conversation"], found["turn"], strict=True))
        for one in held if below else ():
            at = (one["layer"] == alarm.layer) & (one["speaker"] == "assistant")
            keys = zip(one["conversation"], one["turn"], strict=True)
            one["alert"] |= at & np.array([key in below for key in keys], dtype=bool)
        while sum(one["turn"].nunique() for one in list(held)[1:]) >= alarm.run:
            yield held.popleft()
    yield from held


def told_turns(turns: list[int]) -> str:
    """Turn numbers with runs drawn together, cut after a few."""
    runs: list[list[int]] = []
    for turn in turns:
        if runs and turn == runs[-1][-1] + 1:
            runs[-1][1:] = [turn]
        else:
            runs.append([turn])
    told = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join(told[:8]) + (" ..." if len(told) > 8 else "")
