"""How far a judge agrees with the truth, or two judges with each other. What was not judged is counted beside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from persona_axis.errors import JudgeError, PersonaAxisError
from persona_axis.stats.intervals import DRAWS, FEWEST, Estimate, bootstrap, correlation
from persona_axis.stats.shares import NOTHING, average, share

Array = NDArray[np.float64]
BINS = 10


class Agreement(NamedTuple):
    """A judge's chances beside what is true; each figure with its 95% interval, nan where it is undefined."""

    items: int
    unjudged: int
    accuracy: Estimate
    """Share of judged items on whose right side of one half the chance lies."""
    kappa: Estimate
    """Cohen's: 1 is perfect, 0 what two who know nothing of each other reach."""
    auc: Estimate
    """Chance that a true item is given a higher chance than a false one; ties count half."""
    brier: Estimate
    """Mean squared distance of chance and truth: 0 is perfect, .25 what saying one half to all earns."""
    calibration: float
    """Expected calibration error over ten bins: how far chances lie from the shares that are true, on average."""


def agreement(
    truth: Sequence[bool], chances: Sequence[float | None], clusters: Sequence[Any] | None = None
) -> Agreement:
    """Of one judge. `clusters` names what items belong to (a conversation, a role); each is its own without.

    Raises `JudgeError` for lists of unlike length.
    """
    if len(truth) != len(chances) or (clusters is not None and len(clusters) != len(truth)):
        raise JudgeError(f"{len(chances)} verdicts on {len(truth)} items")
    judged = [i for i, chance in enumerate(chances) if chance is not None]
    names: list[Any] = [clusters[i] if clusters is not None else i for i in judged]
    true = np.array([bool(truth[i]) for i in judged], dtype=np.float64)
    given = np.array([chances[i] for i in judged], dtype=np.float64)
    said = (given >= 0.5).astype(np.float64)
    return Agreement(
        len(truth), len(truth) - len(judged), share((said == true).tolist(), names), kappa(true, said, names),
        auc(true, given, names), average((given - true) ** 2, names), _calibration_error(true, given),
    )  # fmt: skip


def kappa(a: ArrayLike, b: ArrayLike, clusters: Sequence[Any]) -> Estimate:
    """Agreement of two lists of scores beyond chance, distances squared (Cohen 1968); of yes and no it is Cohen's own.

    1 - mean (a - b)^2 / its mean if a and b were independent. Nan where both give one same score to everything.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    sums = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1)

    def of(s: Array) -> Array:
        n = s[..., 0]
        squares = (s[..., 3] + s[..., 4]) / n
        found: Array = 1 - (squares - 2 * s[..., 5] / n) / (squares - 2 * s[..., 1] * s[..., 2] / n**2)
        return found

    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(of(sums.sum(axis=0))) if len(x) else math.nan
    if not math.isfinite(value):
        return NOTHING
    return _with_interval(value, lambda: bootstrap(sums, of, clusters))


def correlated(a: ArrayLike, b: ArrayLike, clusters: Sequence[Any]) -> Estimate:
    """Pearson's correlation; nan where one of them does not vary, without an interval for fewer than 5 clusters."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if len(x) < 2 or not x.std() or not y.std():
        return NOTHING
    return _with_interval(float(np.corrcoef(x, y)[0, 1]), lambda: correlation(x, y, clusters))


def auc(truth: ArrayLike, chances: ArrayLike, clusters: Sequence[Any]) -> Estimate:
    """Area under the ROC curve; nan without both true and false items."""
    true, given = np.asarray(truth, dtype=bool), np.asarray(chances, dtype=np.float64)
    if true.all() or not true.any():
        return NOTHING
    above = np.sign(given[true][:, None] - given[~true][None, :]) / 2 + 0.5  # [true, false]
    value = float(above.mean())
    names, of_row = np.unique(np.asarray([str(c) for c in clusters]), return_inverse=True)
    if len(names) < FEWEST:
        return Estimate(value, math.nan, math.nan)
    rng, found = np.random.default_rng(0), []
    for _ in range(DRAWS // 4):
        drawn = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[of_row]
        yes, no = drawn[true], drawn[~true]
        if yes.any() and no.any():
            found.append(float(yes @ above @ no) / (yes.sum() * no.sum()))
    low, high = np.quantile(found, [0.025, 0.975]) if found else (math.nan, math.nan)
    return Estimate(value, float(low), float(high))


def _calibration_error(true: Array, given: Array) -> float:
    if not len(true):
        return math.nan
    bins = np.minimum((given * BINS).astype(int), BINS - 1)
    gaps = [abs(float((given - true)[bins == b].sum())) for b in range(BINS)]
    return sum(gaps) / len(true)


def _with_interval(value: float, of: Any) -> Estimate:
    try:
        found: Estimate = of()
    except PersonaAxisError:  # too few clusters, or too few that vary: the figure stands without a width
        return Estimate(value, math.nan, math.nan)
    return found
