"""Where a projection lies in an axis file's distributions, and which turns lie too low."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from persona_axis.errors import DriftError
from persona_axis.trajectories.frame import PERCENTILES

if TYPE_CHECKING:
    from persona_axis.axis import Axis


def percentiles(axis: Axis, layer: int, values: ArrayLike, distribution: str = "default") -> NDArray[np.float64]:
    """Where `values` lie in a named distribution of the axis file at `layer`: 0 to 100, of the values' shape.

    Linear between the table's 101 points, 0 or 100 outside of them; on a step of the table its middle; NaN stays NaN.
    Raises `AxisFileError` where the file has no such table.
    """
    table = axis.array(f"quantiles_{distribution}")[axis.row(layer)].astype(np.float64)
    given = np.asarray(values, dtype=np.float64)
    below, upto = (np.searchsorted(table, given, side) for side in ("left", "right"))
    between = np.interp(given, table, np.arange(len(table)))
    return np.where(upto > below, (below + upto - 1) / 2, between)


def add_percentiles(frame: pd.DataFrame, axis: Axis) -> pd.DataFrame:
    """The table with `percentile_default` and `percentile_roles`, each where the axis file has the distribution.

    They are distributions of replies: rows of other speakers have NaN.
    """
    values = frame["projection"].to_numpy(dtype=np.float64, na_value=np.nan)
    layers, replies = frame["layer"].to_numpy(), frame["speaker"].to_numpy(dtype=object) == "assistant"
    added = {}
    for distribution, column in PERCENTILES.items():
        if f"quantiles_{distribution}" not in axis.arrays:
            continue
        added[column] = np.full(len(frame), np.nan)
        for layer in np.unique(layers):
            at = replies & (layers == layer)
            added[column][at] = percentiles(axis, int(layer), values[at], distribution)
    return frame.assign(**added)


class Alarm:
    """Finds turns that lie too low in frames that come one after another, as `trajectories` gives them.

    A reply is below when its projection at `layer` (the axis' recommended one unless given) is smaller than that
    percentile of the axis file's default distribution: about `percentile` percent of healthy replies are. With `run`
    above 1 only replies count that stand in an unbroken series of so many; a reply without a projection breaks it,
    the end of a frame does not.
    """

    def __init__(self, axis: Axis, percentile: float, layer: int | None = None, run: int = 1) -> None:
        if run < 1:
            raise DriftError(f"an alert needs at least 1 turn in a row, got {run}")
        self.layer = axis.recommended_layer if layer is None else layer
        self.run = run
        self.threshold = float(axis.quantile("default", percentile)[axis.row(self.layer)])
        """In units of the residual stream."""
        self._held: pd.DataFrame | None = None  # the end of the last frame, if it may go on in the next
        self._told = 0  # how many of these rows have been given out

    def __call__(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of this frame's turns that are alerts, and of the last frame's that have become so by this one."""
        rows = frame[(frame["layer"] == self.layer) & (frame["speaker"] == "assistant")]
        if len(frame) and self.layer not in set(frame["layer"]):
            layers = ", ".join(str(layer) for layer in sorted(set(frame["layer"])))
            raise DriftError(f"layer {self.layer} is not in the table, whose layers are {layers}")
        if self._held is not None:
            rows = pd.concat([self._held, rows], ignore_index=True)
        if not len(rows):
            return rows
        names, turns = rows["conversation"].to_numpy(dtype=object), rows["turn"].to_numpy(dtype=np.int64)
        below = rows["projection"].to_numpy(dtype=np.float64, na_value=np.nan) < self.threshold
        goes_on = (names[1:] == names[:-1]) & (turns[1:] == turns[:-1] + 1) & (below[1:] == below[:-1])
        series = np.concatenate([[0], np.cumsum(~goes_on)])
        alert = below & (np.bincount(series)[series] >= self.run)
        given = alert & (np.arange(len(rows)) >= self._told)
        last = np.flatnonzero(series == series[-1])[-self.run :]
        self._held = rows.iloc[last] if below[-1] else None
        self._told = len(last) if below[-1] and alert[-1] else 0
        return rows[given].reset_index(drop=True)


def alerts(frame: pd.DataFrame, axis: Axis, percentile: float, layer: int | None = None, run: int = 1) -> pd.DataFrame:
    """The assistant's turns below that percentile of the default, at one layer; see `Alarm` for a table in pieces."""
    return Alarm(axis, percentile, layer, run)(frame)
