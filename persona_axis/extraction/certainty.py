"""How certain an axis is: the cosine between axes from two halves of the questions or prompts, with an interval."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SPLITS = 50
DRAWS = 200
LEAST_GROUPS = 4
"""Question groups that an interval needs: of fewer, halves have one or two, and drawing them again tells nothing."""


class SplitHalf(NamedTuple):
    """Mean cosine over random splits into halves, and the ends of its 95% interval."""

    cosine: float
    low: float
    high: float


class Certainty(NamedTuple):
    """How certain the axis of one layer is: split-half cosines over questions and over prompts."""

    questions: SplitHalf
    prompts: SplitHalf | None
    """None where there is one prompt only, and nothing to split."""

    @property
    def expected(self) -> float:
        """Expected cosine with the axis that no noise of questions, or of prompts, would touch: the smaller counts."""
        return min(noise_free(half.cosine) for half in self._splits)

    @property
    def low(self) -> float:
        """Lower end of the 95% interval of `expected`."""
        return min(noise_free(half.low) for half in self._splits)

    @property
    def _splits(self) -> list[SplitHalf]:
        return [self.questions] if self.prompts is None else [self.questions, self.prompts]


def noise_free(split: float) -> float:
    """Cosine of a whole with the truth from the cosine c of its two halves: sqrt(2c / (1 + c)).

    Halves that share a signal of square length S and each have noise N have c = S / (S + N); the whole has noise
    N / 2, and with the signal alone it has the cosine sqrt(S / (S + N / 2)).
    """
    return float(np.sqrt(2 * split / (1 + split))) if split > 0 else 0.0


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
    cosine, so the distances from 1 are scaled back to have the mean that was measured. With fewer than LEAST_GROUPS
    groups the interval is all that a cosine may be.
    """
    rng = np.random.default_rng(seed)
    weights = _halves(rng, SPLITS + DRAWS, counts.shape[1])
    found = _measured(weights[:, :, None], weights, sums, counts, default_sums, default_counts)
    return found if counts.shape[1] >= LEAST_GROUPS else found._replace(low=-1.0, high=1.0)


def split_prompts(
    sums: NDArray[Any],
    counts: NDArray[Any],
    default_sums: NDArray[Any],
    default_counts: NDArray[Any],
    seed: int,
) -> SplitHalf | None:
    """The same over prompts, which every role has its own of, so that each is split by itself; None for one prompt.

    `sums` [roles, prompts, hidden], `counts` [roles, prompts]. The default is split by question group: its conditions
    are what it is defined by, not a sample of the wordings it might have had.
    """
    roles, prompts = counts.shape
    if prompts < 2:
        return None
    rng = np.random.default_rng(seed)
    of_default = _halves(rng, SPLITS + DRAWS, len(default_counts))
    of_roles = np.stack([_halves(rng, SPLITS + DRAWS, prompts) for _ in range(roles)], axis=2)
    return _measured(of_roles, of_default, sums, counts, default_sums, default_counts)


def _measured(
    weights: Array, default_weights: Array, sums: NDArray[Any], counts: NDArray[Any], default_sums: NDArray[Any],
    default_counts: NDArray[Any],
) -> SplitHalf:  # fmt: skip
    """From SPLITS plain splits and DRAWS drawn again: `weights` [splits, 2, roles or 1, parts], how often each part
    counts in each half; `default_weights` [splits, 2, parts of the default]."""
    axes = np.stack(
        [_axes(weights[:, h], default_weights[:, h], sums, counts, default_sums, default_counts) for h in (0, 1)]
    )
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


def _halves(rng: np.random.Generator, splits: int, parts: int) -> Array:
    """[splits, 2, parts]: how often each part counts in each half, in SPLITS plain splits and then drawn again."""
    order = rng.permuted(np.tile(np.arange(parts), (splits, 1)), axis=1)
    halves = []
    for members in (order[:, : parts // 2], order[:, parts // 2 :]):
        size = members.shape[1]
        picks = np.tile(np.arange(size), (splits, 1))
        picks[SPLITS:] = rng.integers(0, max(1, size), (max(0, splits - SPLITS), size))
        chosen = np.take_along_axis(members, picks, axis=1)
        halves.append((chosen[:, :, None] == np.arange(parts)).sum(axis=1))
    return np.stack(halves, axis=1).astype(float)


def _axes(
    weights: Array, default_weights: Array, sums: NDArray[Any], counts: NDArray[Any], default_sums: NDArray[Any],
    default_counts: NDArray[Any],
) -> Array:  # fmt: skip
    """[splits, hidden]: the unnormalised axis for each row of `weights` [splits, roles or 1, parts]; nan where a half
    is empty."""
    with np.errstate(divide="ignore", invalid="ignore"):
        of_role = (weights * counts).sum(axis=-1)  # [splits, roles]: accepted rollouts in the half
        usable = of_role > 0  # a role with nothing in this half is left out of its mean
        share = np.where(usable, 1 / of_role, 0) / usable.sum(axis=1, keepdims=True)
        each = share[:, :, None] * weights  # [splits, roles, parts]
        roles = each.reshape(len(weights), -1) @ sums.reshape(-1, sums.shape[-1]).astype(float)
        of_default = (default_weights @ default_counts.astype(float))[:, None]
        default = (default_weights @ default_sums.astype(float)) / of_default
        axes: Array = default - roles
    return axes
