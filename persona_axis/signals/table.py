"""The one shape of a signal: a tidy table, the range of its values, how many rows nobody could judge, an interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from persona_axis.conversations import Conversation
from persona_axis.errors import SignalError
from persona_axis.stats.intervals import Estimate
from persona_axis.stats.shares import NOTHING, average, share

DTYPES = {
    "signal": "string", "conversation": "string", "domain": "string", "split": "string", "turn": "int64",
    "against": "Int64", "tokens": "Int64", "value": "float64", "probability": "float64", "about": "string",
}  # fmt: skip
COLUMNS = tuple(DTYPES)
"""Of every signal's table, so that tables of several can stand below each other."""


class Row(NamedTuple):
    """One turn, or one pair of turns, of a conversation."""

    conversation: Conversation
    turn: int
    """The n-th line of the agent, from 1."""
    value: float
    """NaN where it could not be judged."""
    against: int | None = None
    """The earlier turn it was held against; 0 is the persona."""
    tokens: int | None = None
    probability: float = math.nan
    """What a judge's yes or no was made from."""
    about: str | None = None
    """The question that was asked, the text that was contradicted, or why nothing could be judged."""


@dataclass(frozen=True, eq=False)
class Signal:
    """A score of conversations. `low` and `high` bound `value`; `means` says in words what a larger value is."""

    name: str
    frame: pd.DataFrame
    low: float
    high: float
    means: str
    judge: str = ""
    yes_or_no: bool = False
    """Whether each value is 1 or 0, so that the mean is a share."""

    @property
    def rows(self) -> int:
        """Turns or pairs, judged or not."""
        return len(self.frame)

    @property
    def unjudged(self) -> int:
        """Rows without a value: in the table as NaN, in no mean."""
        return int(self.frame["value"].isna().sum())

    @property
    def estimate(self) -> Estimate:
        """Mean over the judged rows with a 95% interval over conversations: a bootstrap, of a share Wilson's where all
        are alike.

        NaN without judged rows, and without an interval for fewer than 5 conversations.
        """
        judged = self.frame[self.frame["value"].notna()]
        values, clusters = judged["value"].to_numpy(), judged["conversation"].tolist()
        if not len(values):
            return NOTHING
        return share((values == 1).tolist(), clusters) if self.yes_or_no else average(values, clusters)


def signal(
    name: str, rows: Iterable[Row], means: str, low: float = 0.0, high: float = 1.0, judge: str = "",
    yes_or_no: bool = False,
) -> Signal:  # fmt: skip
    """The rows as a signal.

    Raises `SignalError` for a value outside [low, high], or between 0 and 1 where it is yes or no: then the signal is
    wrong.
    """
    made = list(rows)
    for row in made:
        if math.isnan(row.value):
            continue
        if yes_or_no and row.value not in (0, 1):
            where = f"{name}: conversation {row.conversation.id!r}, turn {row.turn}"
            raise SignalError(f"{where}: {row.value} is not 0 or 1")
        if not low <= row.value <= high:
            raise SignalError(
                f"{name}: conversation {row.conversation.id!r}, turn {row.turn}: {row.value} lies outside "
                f"[{low:g}, {high:g}]"
            )
    columns = {
        "signal": [name] * len(made),
        "conversation": [row.conversation.id for row in made],
        "domain": [row.conversation.domain for row in made],
        "split": [row.conversation.split for row in made],
        **{key: [getattr(row, key) for row in made] for key in COLUMNS[4:]},
    }
    frame = pd.DataFrame({key: pd.Series(columns[key], dtype=dtype) for key, dtype in DTYPES.items()})
    return Signal(name, frame, low, high, means, judge, yes_or_no)


def together(signals: Sequence[Signal]) -> pd.DataFrame:
    """The tables of several signals as one."""
    if not signals:
        raise SignalError("there are no signals to put together")
    return pd.concat([one.frame for one in signals], ignore_index=True)


def summary(signals: Sequence[Signal]) -> pd.DataFrame:
    """A row for each signal: mean and interval, rows, how many could not be judged, range, judge."""
    return pd.DataFrame(
        {
            "signal": one.name, **one.estimate._asdict(), "rows": one.rows, "unjudged": one.unjudged,
            "lowest": one.low, "highest": one.high, "judge": one.judge, "means": one.means,
        }
        for one in signals
    )  # fmt: skip
