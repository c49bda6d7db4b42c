"""The one table of the bench: each signal under each lever with its interval, and beside it the paired difference."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from persona_axis.errors import PersonaAxisError
from persona_axis.signals.table import Signal
from persona_axis.stats.intervals import FEWEST, Estimate, bootstrap, paired_shares
from persona_axis.stats.shares import NOTHING

COLUMNS = (
    "lever", "suite", "signal", "value", "low", "high", "rows", "unjudged", "difference", "difference_low",
    "difference_high", "means",
)  # fmt: skip
TEST, COST = "test", "cost"
Found = Mapping[tuple[str, str], Signal]
"""By suite and signal."""


def table(found: Mapping[str, Found], costs: Mapping[str, Mapping[str, float]], against: str) -> pd.DataFrame:
    """A row a lever, suite and signal (`COLUMNS`), then what each lever costs; differences are to the lever `against`.

    Intervals are 95% over conversations, over items in the test; costs have none.
    """
    rows: list[tuple[object, ...]] = []
    for lever, signals in found.items():
        for (suite, name), one in signals.items():
            base = found[against].get((suite, name))
            apart = NOTHING if base is None or lever == against else difference(base, one)
            rows.append((lever, suite, name, *one.estimate, one.rows, one.unjudged, *apart, one.means))
    for lever, cost in costs.items():
        for name, value in cost.items():
            more = NOTHING if lever == against else Estimate(value - costs[against][name], math.nan, math.nan)
            rows.append((lever, COST, name, value, math.nan, math.nan, 0, 0, *more, "more is paid"))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def difference(before: Signal, after: Signal) -> Estimate:
    """mean(after) - mean(before) over the same conversations, which are drawn again together.

    What was held under one lever only counts on neither side. Means are over judged rows, as in the table, so nothing
    is dropped that only one of them could judge. Shares of
    single replies (items, jailbreaks) have Newcombe's interval, which keeps a width where nothing changed; so have
    those of longer conversations where each side is all 0 or all 1, each conversation counted once. NaN where either
    has no judged row, without an interval for fewer than 5 conversations, or where so few could be judged that more
    than a few draws hold none of them.
    """
    sums: dict[str, list[float]] = {}
    both = set(before.frame["conversation"]) & set(after.frame["conversation"])
    for place, one in enumerate((before, after)):
        judged = one.frame[one.frame["value"].notna() & one.frame["conversation"].isin(both)]
        for name, value in zip(judged["conversation"], judged["value"], strict=True):
            row = sums.setdefault(name, [0.0] * 4)
            row[2 * place] += 1
            row[2 * place + 1] += value
    totals = np.array(list(sums.values())).reshape(-1, 4)
    n_before, s_before, n_after, s_after = totals.sum(axis=0)
    if not n_before or not n_after:
        return NOTHING
    value = float(s_after / n_after - s_before / n_before)
    if len(totals) < FEWEST:
        return Estimate(value, math.nan, math.nan)
    if before.yes_or_no and (totals[:, [0, 2]] == 1).all():
        return paired_shares((totals[:, 1] > 0).tolist(), (totals[:, 3] > 0).tolist())
    if before.yes_or_no and {s_before / n_before, s_after / n_after} <= {0.0, 1.0}:
        count = len(totals)
        return paired_shares([s_before > 0] * count, [s_after > 0] * count)
    try:
        return bootstrap(totals, lambda s: s[..., 3] / s[..., 2] - s[..., 1] / s[..., 0])
    except PersonaAxisError:  # the value is defined: it is draws without a judged row on one side that are too many
        return Estimate(value, math.nan, math.nan)
