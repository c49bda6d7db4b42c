"""How certain an axis is: the cosine between axes from two halves of the questions, with an interval."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SPLITS = 50
DRAWS = 200


class SplitHalf(NamedTuple):
    """Mean cosine over random splits into halves, and the ends of its 95% interval."""

    cosine: float
    low: float
    high: float


def split_half(
    sums: NDArray[Any],
    counts: NDArray[Any],
    default_sums: NDArray[Any],
    default_counts: NDArray[Any],
    seed: int,
) -> SplitHalf:
    """Split-half cosine of one layer's axis from sums by question group.

    `sums` [roles, groups, hidden] and `counts` [roles, groups] of accepted rollouts, `default_sums` [groups,
    hidden] and `default_counts` [groups]. The groups are split in two at random, SPLITS times; each half
    gives an axis (default - mean over roles, each role weighing the same). For the interval the groups of
    each half are drawn again with replacement, DRAWS times. Drawing again adds noise, which lowers the
    cosine, so the distances from 1 are scaled back to have the mean that was measured.
    """
    rng = np.random.default_rng(seed)
    plain = [_halves(rng, counts.shape[1], again=False) for _ in range(SPLITS)]
    drawn = [_halves(rng, counts.shape[1], again=True) for _ in range(DRAWS)]
    weights = np.array(plain + drawn)  # [splits, 2, groups]
    axes = np.stack([_axes(weights[:, h], sums, counts, default_sums, default_counts) for h in (0, 1)])
    first, second = axes / np.linalg.norm(axes, axis=-1, keepdims=True)
    cosines = (first * second).sum(axis=-1)
    measured, again = cosines[:SPLITS], cosines[SPLITS:]
    measured, again = measured[np.isfinite(measured)], again[np.isfinite(again)]
    if not len(measured):  # no half has anything in it: nothing is known
        return SplitHalf(0.0, -1.0, 1.0)
    cosine = float(np.clip(measured.mean(), -1, 1))
    if not len(again) or again.mean() >= 1:
        return SplitHalf(cosine, cosine, cosine)
    apart = (1 - again) * (1 - cosine) / (1 - again.mean())
    low, high = np.clip(1 - np.quantile(apart, [0.975, 0.025]), -1, 1)
    return SplitHalf(cosine, float(min(low, cosine)), float(max(high, cosine)))


def _halves(rng: np.random.Generator, groups: int, again: bool) -> Array:
    """[2, groups]: how often each group counts in each half."""
    order = rng.permutation(groups)
    weights = np.zeros((2, groups))
    for half, members in enumerate((order[: groups // 2], order[groups // 2 :])):
        chosen = rng.choice(members, size=len(members)) if again else members
        np.add.at(weights[half], chosen, 1)
    return weights


def _axes(
    weights: Array,
    sums: NDArray[Any],
    counts: NDArray[Any],
    default_sums: NDArray[Any],
    default_counts: NDArray[Any],
) -> Array:
    """[splits, hidden]: the unnormalised axis for each row of `weights` [splits, groups]; nan where a half is
    empty."""
    with np.errstate(divide="ignore", invalid="ignore"):
        of_role = weights @ counts.T.astype(float)  # [splits, roles]: accepted rollouts in the half
        usable = of_role > 0  # a role with nothing in this half is left out of its mean
        share = np.where(usable, 1 / of_role, 0) / usable.sum(axis=1, keepdims=True)
        each = share[:, :, None] * weights[:, None, :]  # [splits, roles, groups]
        roles = each.reshape(len(weights), -1) @ sums.reshape(-1, sums.shape[-1]).astype(float)
        default = (weights @ default_sums.astype(float)) / (weights @ default_counts.astype(float))[:, None]
        axes: Array = default - roles
    return axes
