"""What parts of the questions tell about a difference vector: split halves, a noise floor, an interval.

A trait's difference (positive - negative) is kept for each of a few folds of the questions, and their mean is the
trait's vector. Two halves of the folds that agree are its certainty. With half of the signs turned the trait
cancels, and the noise that is in its vector stays: the shuffled-sign control. Few folds have few halves, so all are
taken and nothing is drawn at random.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
MOST_FOLDS = 8  # 35 pairs of halves; a file holds every fold's vectors


class Interval(NamedTuple):
    """A cosine with the ends of its 95% interval."""

    cosine: float
    low: float
    high: float


def unit(vectors: NDArray[Any]) -> Array:
    """Rows [..., hidden] of length 1; a row of zeros stays one."""
    wide = vectors.astype(np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    found: Array = wide / np.where(length > 0, length, 1.0)
    return found


def split_half(folds: NDArray[Any]) -> Array:
    """Cosine between the mean differences of two halves of `folds` [..., folds, hidden], averaged over all ways to
    halve them; [...]. Odd folds make halves that differ by one."""
    weights, wide = _halves(folds.shape[-2]), folds.astype(np.float64)
    first, second = (unit(np.einsum("wf,...fh->...wh", side, wide)) for side in (weights, 1 - weights))
    found: Array = (first * second).sum(axis=-1).mean(axis=-1)
    return found


def agreement(vectors: NDArray[Any]) -> Array:
    """Mean cosine between any two of `vectors` [..., m, hidden]; [...]."""
    rows = unit(vectors)
    count = rows.shape[-2]
    total = np.square(rows.sum(axis=-2)).sum(axis=-1) - np.square(rows).sum(axis=(-2, -1))
    found: Array = total / (count * (count - 1))
    return found


def noise_floor(folds: NDArray[Any], direction: NDArray[Any]) -> float:
    """The |cosine| with `direction` [hidden] that the noise in the mean of `folds` [folds, hidden] gives it by itself,
    exceeded one time in twenty; at most 1.

    The noise is the mean with half of the signs turned: the trait cancels, and as much noise stays as the mean holds.
    The root mean square of its projection over all ways to turn them is the standard error of the folds' projections,
    widened by Student's t for so few; told in lengths of the mean, as the cosine is.
    """
    from scipy.special import stdtrit

    projections, count = folds.astype(np.float64) @ unit(direction), len(folds)
    error = projections.std(ddof=1) / np.sqrt(count)
    length = np.linalg.norm(folds.mean(axis=0, dtype=np.float64))
    return float(min(1.0, stdtrit(count - 1, 0.975) * error / length))


def cosine_with(folds: NDArray[Any], direction: NDArray[Any]) -> Interval:
    """Cosine of the mean of `folds` [folds, hidden] with `direction` [hidden].

    The interval is the jackknife's over folds, with Student's t for so few of them, taken on the inverse hyperbolic
    tangent of the cosine so that it stays between -1 and 1. It tells how other questions would move the cosine, not
    how other wordings of the instructions would.
    """
    from scipy.special import stdtrit

    wide, count = folds.astype(np.float64), len(folds)
    left_out = (wide.sum(axis=0) - wide) / (count - 1)
    most = 1 - 1e-12
    centre, *others = np.arctanh(np.clip(unit(np.vstack([wide.mean(axis=0), left_out])) @ unit(direction), -most, most))
    error = np.sqrt((count - 1) / count * np.square(others - np.mean(others)).sum())
    reach = float(stdtrit(count - 1, 0.975)) * error
    low, middle, high = np.tanh([centre - reach, centre, centre + reach])
    return Interval(float(middle), float(low), float(high))


def random_direction(hidden: int) -> float:
    """The |cosine| that one in twenty directions drawn evenly from `hidden` dimensions reaches with a given one."""
    from scipy.special import betaincinv

    return float(np.sqrt(betaincinv(0.5, (hidden - 1) / 2, 0.95)))


def random_mixture(roles: NDArray[Any], direction: NDArray[Any], draws: int = 4000) -> float:
    """The same for random mixtures of the centred role vectors `roles` [n, hidden]: what differs as roles differ."""
    centred = roles.astype(np.float64) - roles.mean(axis=0, dtype=np.float64)
    weights = np.random.default_rng(0).normal(size=(draws, len(centred)))
    squares = ((weights @ (centred @ centred.T)) * weights).sum(axis=1)
    lengths = np.sqrt(np.maximum(squares, np.finfo(float).tiny))
    return float(np.quantile(np.abs(weights @ (centred @ unit(direction))) / lengths, 0.95))


@cache
def _halves(folds: int) -> Array:
    """[ways, folds]: 1 for what is in the smaller half; of two even halves, the one with fold 0."""
    chosen = [c for c in combinations(range(folds), folds // 2) if folds % 2 or 0 in c]
    weights = np.zeros((len(chosen), folds))
    for row, members in enumerate(chosen):
        weights[row, list(members)] = 1
    return weights
