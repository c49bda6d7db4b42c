"""After each round: is the axis certain enough, and if not, which rollouts to draw next.

Rollouts go where they reduce the axis' noise most. With n_r accepted rollouts of role r, whose means scatter by
sigma_r, and R roles that weigh the same, that noise is sigma_0^2 / n_0 + sum_r sigma_r^2 / (R^2 n_r), 0 being the
default. For a given total it is least at n proportional to sigma_0 and sigma_r / R (Neyman's allocation): the default,
which every role is compared with, needs about as many as all roles together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from persona_axis.extraction.blocks import TALLIES
from persona_axis.extraction.certainty import LEAST_GROUPS, Certainty, noise_free
from persona_axis.extraction.layersums import LayerSums
from persona_axis.extraction.plan import Plan, Round
from persona_axis.extraction.records import Recorded
from persona_axis.extraction.store import RunStore

Numbers = NDArray[np.float64]

_SPARE = 1.05  # a round aims a little past what seems enough: its own estimate is noisy
_HARDLY = 0.85  # of the uncertainty left, where sampling alone would leave a half
_REFUSED = 1 / 8  # a role accepted more rarely than this is given up


class Standing(NamedTuple):
    """What is known after a round: of the default first, then of each role."""

    drawn: NDArray[np.int64]
    """[1 + roles] rollouts."""
    accepted: NDArray[np.int64]
    """[1 + roles] of them."""
    spread: Numbers
    """[1 + roles] sigma: scatter of a rollout's mean activation, relative to the length of the axis, root mean square
    over the chosen layers; nan where fewer than two were accepted."""
    certainty: dict[int, Certainty]
    """By chosen layer."""

    @property
    def low(self) -> float:
        """The lower end of the expected cosine's interval at the least certain of the chosen layers."""
        return min((one.low for one in self.certainty.values()), default=0.0)

    @property
    def expected(self) -> float:
        """The expected cosine at the least certain of the chosen layers."""
        return min((one.expected for one in self.certainty.values()), default=0.0)

    @property
    def wordings(self) -> float:
        """How much of 1 - expected is there because prompts are worded differently, at the least certain layer."""
        least = min(self.certainty.values(), key=lambda one: one.low, default=None)
        if least is None or least.prompts is None:
            return 0.0
        return max(0.0, noise_free(least.questions.cosine) - noise_free(least.prompts.cosine))


def first_round(plan: Plan) -> Round:
    """Enough of each role for its vector, and of the default as many as a tenth of the roles have together."""
    options = plan.options
    if options.precision >= 1:
        return plan.until(plan.ceilings)
    each = min(plan.per_role, max(8, math.ceil(1.2 * options.min_accepted)))
    default = min(plan.default_rollouts, max(4 * each, len(plan.roles) * each // 10))
    return plan.until((default, *[each] * len(plan.roles)))


def next_round(plan: Plan, last: Round, now: Standing, rounds: Sequence[Recorded]) -> Round | None:
    """The round to draw after `last`, the last of `rounds`, or None if the axis is certain enough, nothing is left to
    draw, or drawing does not help."""
    room = np.array(plan.ceilings) - now.drawn
    room[1:][given_up(now)[1:]] = 0
    more = _for_vectors(plan, now)
    if now.low < plan.options.precision and not in_vain(rounds):
        more = np.maximum(more, _for_precision(plan, now, room))
    more = np.minimum(more, room)
    return plan.until(tuple(int(n) for n in now.drawn + more), last) if more.any() else None


def in_vain(rounds: Sequence[Recorded]) -> bool:
    """Whether the axis became hardly more certain with twice the rollouts, which halve what is noise of the sampling.

    What is left then is how much the wordings of the prompts differ: more prompts would help, more rollouts do not.
    """
    *_, now = rounds
    before = next((one for one in reversed(rounds) if 2 * _HARDLY * sum(one.stop) < sum(now.stop)), None)
    if before is None or before.low is None or now.low is None:
        return False
    return 1 - now.low > _HARDLY * (1 - before.low)


def why_not(plan: Plan, last: Round, now: Standing, rounds: Sequence[Recorded]) -> str:
    """Why a run ends short of its precision, for people."""
    least = plan.options.min_accepted
    if (kept := int((now.accepted[1:] >= least).sum())) < 2:
        return (
            f"{kept} of {len(plan.roles)} roles have {least} accepted replies; of {int(now.drawn[1:].sum()):,} that "
            f"were drawn in roles the judge accepted {int(now.accepted[1:].sum()):,}"
        )
    if plan.groups < LEAST_GROUPS:
        return f"{len(plan.questions)} questions are too few to tell how certain it is; ask at least {LEAST_GROUPS}"
    if in_vain(rounds):
        return (
            f"twice the rollouts hardly helped, so what is left is how {plan.prompts} prompts and "
            f"{len(plan.questions)} questions differ; ask more of them"
        )
    return f"the plan's {sum(last.stop):,} rollouts are drawn; more prompts, questions or default_samples have more"


def given_up(now: Standing) -> NDArray[np.bool_]:
    """Roles that the judge keeps refusing: it takes less than one rollout in eight, and where it took none, nothing
    more than that is left possible (95%)."""
    with np.errstate(divide="ignore"):
        none = 1 - 0.05 ** (1 / np.maximum(now.drawn, 1))  # what k refusals in a row leave possible
    rate = (now.accepted + 1) / (now.drawn + 1)
    given: NDArray[np.bool_] = np.where(now.accepted == 0, none, rate) < _REFUSED
    return given


def _for_vectors(plan: Plan, now: Standing) -> NDArray[np.int64]:
    """More rollouts for roles that are short of accepted ones; at most as many again as they have had."""
    short = np.maximum(plan.options.min_accepted - now.accepted, 0)
    short[0] = 0
    wanted = np.ceil(short * (now.drawn + 2) / (now.accepted + 1)).astype(np.int64)
    return np.minimum(wanted, now.drawn)


def _for_precision(plan: Plan, now: Standing, room: NDArray[np.int64]) -> NDArray[np.int64]:
    """The fewest rollouts that seem to bring the lower end to the precision; at least a tenth of those there are, and
    at most as many again."""
    weight = _weights(now)
    known = weight > 0
    rate = (now.accepted + 1) / (now.drawn + 2)
    held, most = now.drawn.astype(float), (now.drawn + room).astype(float)
    aimed = max(1e-9, 1 - plan.options.precision)
    wordings = min(now.wordings, 0.8 * aimed)
    needed = (1 - now.low - wordings) / (aimed - wordings) * _SPARE

    def noise(drawn: Numbers) -> float:
        return float((weight[known] ** 2 / (drawn[known] * rate[known])).sum())

    def filled(level: float) -> Numbers:
        return np.clip(level * weight / np.sqrt(rate), held, most)

    aim, least, budget = noise(held) / needed, 1.1 * held.sum(), 2 * held.sum()
    low, high = 0.0, float(most.max() / weight[known].min()) if known.any() else 0.0
    for _ in range(60):  # bisection; the noise falls and the total rises with the level
        level = (low + high) / 2
        drawn = filled(level)
        if drawn.sum() < least or (noise(drawn) > aim and drawn.sum() < budget):
            low = level
        else:
            high = level
    more: NDArray[np.int64] = np.ceil(filled(high) - held).astype(np.int64)
    return more


def _weights(now: Standing) -> Numbers:
    """sigma_0 and sigma_r / R; 0 for roles that were given up or have too few accepted rollouts to tell, which are not
    in the axis."""
    spread = np.where(given_up(now), 0, np.nan_to_num(now.spread))
    spread[1:] /= max(1, int((spread[1:] > 0).sum()))
    return spread


def chosen_layers(plan: Plan, num_layers: int) -> tuple[int, ...]:
    """The layers that the precision is promised at: those asked for, else the middle half of the model."""
    if plan.options.layers is not None:
        return plan.layers
    middle = tuple(layer for layer in plan.layers if num_layers / 4 <= layer < 3 * num_layers / 4)
    return middle or plan.layers


def standing(plan: Plan, store: RunStore, layers: Sequence[int]) -> Standing:
    """Read what the rounds so far gave; one layer's sums are in memory at a time."""
    blocks = range(plan.n_blocks)
    drawn = np.concatenate([store.blocks.tensor(b, "tallies")[:, TALLIES.index("drawn")].numpy() for b in blocks])
    squares = np.concatenate([store.blocks.tensor(b, "squares").numpy() for b in blocks])
    accepted = np.concatenate([store.blocks.tensor(b, "counts").numpy() for b in blocks]).sum(axis=1)
    kept = np.flatnonzero(accepted[1:] >= plan.options.min_accepted)
    variance, certainty = np.zeros(len(accepted)), {}
    for layer in layers:
        sums = LayerSums.read(plan, store, plan.layers.index(layer))
        with np.errstate(divide="ignore", invalid="ignore"):
            means = np.concatenate([sums.default_mean[None], sums.role_means])
            scatter = (squares[:, plan.layers.index(layer)] - accepted * (means**2).sum(axis=1)) / (accepted - 1)
        scatter[accepted < 2] = np.nan
        if len(kept) and accepted[0]:
            axis = means[0] - means[1:][kept].mean(axis=0)
            scatter /= max(1e-300, float(axis @ axis))
            certainty[layer] = sums.of(kept).certainty(plan.options.seed + layer)
        variance += scatter
    return Standing(drawn, accepted, np.sqrt(np.maximum(variance / len(layers), 0)), certainty)
