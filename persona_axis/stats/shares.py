"""Shares, means and falls over clusters, as tables show them: never without a width, nan where nothing can be said.

A bootstrap of replies that are all alike shows no spread. There the interval is Wilson's, with each cluster (a script,
a prompt, a conversation) counted once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from persona_axis.stats.intervals import DRAWS, FEWEST, Estimate, mean, relative_reduction, wilson

NOTHING = Estimate(math.nan, math.nan, math.nan)


def share(values: Sequence[bool], clusters: Sequence[Any], *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Share of true values; nan for no values, without an interval for fewer than 5 clusters unless all are alike."""
    count, hits = len(set(clusters)), sum(map(bool, values))
    if len(values) and hits in (0, len(values)):
        return wilson(count if hits else 0, count)
    return average(np.asarray(values, dtype=float), clusters, draws=draws, seed=seed)


def average(values: ArrayLike, clusters: Sequence[Any], *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Mean of the values; nan for none, and without an interval for fewer than 5 clusters."""
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        return NOTHING
    if len(set(clusters)) < FEWEST:
        return Estimate(float(x.mean()), math.nan, math.nan)
    return mean(x, clusters, draws=draws, seed=seed)


def fall(
    before: Sequence[bool], after: Sequence[bool], clusters: Sequence[Any], *, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """By which part of itself the share of true values falls, over pairs: 0.6 = by 60%; nan if it was 0 before."""
    if not any(before):
        return NOTHING
    if not any(after):
        left = wilson(0, len(set(clusters))).high
        return Estimate(1.0, 1 - left * len(before) / sum(before), 1.0)
    # A draw in which nothing was true before has no value: of few such clusters there would be too many draws.
    if len({c for c, old in zip(clusters, before, strict=True) if old}) < FEWEST:
        return Estimate(1 - sum(after) / sum(before), math.nan, math.nan)
    first, second = (np.asarray(column, dtype=float) for column in (before, after))
    return relative_reduction(first, second, clusters, draws=draws, seed=seed)
