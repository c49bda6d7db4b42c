"""From the tidy table of turns to the numbers a figure draws: per domain and turn, a centre and its interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import comb
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from persona_axis.stats.intervals import mean

if TYPE_CHECKING:
    from pandas import DataFrame

Centre = Literal["median", "mean"]
FEWEST = 6
"""Fewer values than this have no 95% interval of their median: 5 all lie on one side of it with chance 2 / 2**5."""


class Course(NamedTuple):
    """The projections of some conversations, turn by turn; not a number where a conversation has no such turn."""

    turns: NDArray[np.int64]
    """The turns that any of them has, rising [T]."""
    values: NDArray[np.float64]
    """One conversation a row [n, T]."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many conversations have each turn [T]."""
        counts: NDArray[np.int64] = np.isfinite(self.values).sum(axis=0)
        return counts


class Summary(NamedTuple):
    """The centre of each turn with its 95% interval, all [T]; an interval is not a number where there is none."""

    centre: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def assistant_turns(frame: DataFrame, layer: int, what: str = "frame") -> DataFrame:
    """The assistant's turns at one layer that have a projection; a ValueError, starting with `what`, if none has."""
    missing = {"conversation", "turn", "layer", "projection"} - set(frame.columns)
    if missing:
        raise ValueError(f"{what}: has no column {', '.join(sorted(missing))}")
    rows = frame[frame["layer"] == layer]
    if not len(rows):
        seen = ", ".join(str(number) for number in sorted(set(frame["layer"])))
        raise ValueError(f"{what}: no rows of layer {layer}; its layers: {seen or 'none'}")
    if "speaker" in rows:
        rows = rows[rows["speaker"] == "assistant"]
    rows = rows[np.isfinite(rows["projection"].to_numpy(np.float64, na_value=np.nan))]
    if not len(rows):
        raise ValueError(f"{what}: layer {layer} has no assistant turn with a projection")
    twice = rows[rows.duplicated(["conversation", "turn"])]
    if len(twice):
        conversation, turn = twice.iloc[0][["conversation", "turn"]]
        raise ValueError(f"{what}: conversation {conversation!r} has turn {turn} twice at layer {layer}")
    return rows


def by_domain(frame: DataFrame, layer: int, what: str = "frame") -> dict[str, Course]:
    """The conversations of each domain in the order the table names them; those without one come under `""`."""
    rows = assistant_turns(frame, layer, what)
    if "domain" not in rows:
        return {"": _course(rows)}
    domains = rows["domain"].astype(object).where(rows["domain"].notna(), "")
    return {str(name): _course(group) for name, group in rows.groupby(domains, sort=False)}


def all_domains(tables: Iterable[Mapping[str, Course]]) -> list[str]:
    """Every domain that any of several tables has, in the order they come."""
    return list(dict.fromkeys(domain for table in tables for domain in table))


def summary(values: NDArray[np.float64], centre: Centre = "median") -> Summary:
    """Centre and 95% interval of each column of `values` [n, T], which may hold NaN; one conversation a row.

    The median has the exact interval between two order statistics (binomial), the mean the bootstrap's. Columns
    of fewer than `FEWEST` values get no interval.
    """
    if centre not in ("median", "mean"):
        raise ValueError(f"centre={centre!r}: choose median or mean")
    out = np.full((3, values.shape[1]), np.nan)
    for at, column in enumerate(values.T):
        held = np.sort(column[np.isfinite(column)])
        if len(held):
            out[0, at] = np.median(held) if centre == "median" else held.mean()
        if len(held) >= FEWEST:
            rank = _rank(len(held))
            out[1:, at] = (held[rank - 1], held[-rank]) if centre == "median" else mean(held)[1:]
    return Summary(*out)


def _course(rows: DataFrame) -> Course:
    turns, columns = np.unique(rows["turn"].to_numpy(np.int64), return_inverse=True)
    names, places = np.unique(rows["conversation"].to_numpy(str), return_inverse=True)
    values = np.full((len(names), len(turns)), np.nan)
    values[places, columns] = rows["projection"].to_numpy(np.float64)
    return Course(turns, values)


def _rank(count: int) -> int:
    """The largest r with P(Binomial(count, 1/2) < r) <= 2.5%: x_(r) .. x_(count + 1 - r) holds the median in 95%."""
    if count > 1000:  # where the normal approximation is off by less than one rank
        return int((count - 1.959964 * count**0.5) / 2)
    limit, total, rank = 2**count // 40, 0, 0
    while (total := total + comb(count, rank)) <= limit:
        rank += 1
    return rank
