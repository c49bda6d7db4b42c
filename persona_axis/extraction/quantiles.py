"""Where percentiles of the projections lie: one bounded reading of kept rollouts, once the axis is known.

Only scalars <h, axis> are kept. A floor of a cap is chosen on these tables, so they come from the same
rollouts, read whole and at each token's own position. Among role rollouts every role weighs the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.extraction.events import Calibrating, Listener
from persona_axis.extraction.plan import DEFAULT, Item, Plan
from persona_axis.extraction.rollouts import described, item_of
from persona_axis.model.outofmemory import is_out_of_memory
from persona_axis.residual import reading

Array = NDArray[np.floating[Any]]
Table = NDArray[np.float64]

PERCENTILES = np.arange(101)
_TOKENS_AT_ONCE = 16384  # in one prefill batch, padding included


class Sampled(NamedTuple):
    """A kept rollout, by what it was drawn for and its token ids."""

    item: Item
    ids: list[int]


class Tables(NamedTuple):
    """Quantiles 0, 1, ... 100% of projections, each [layers, 101], and how many rollouts they come
    from."""

    default: Table
    roles: Table
    default_tokens: Table
    roles_tokens: Table
    sample: dict[str, int]


def sample(lines: Iterable[Mapping[str, Any]], plan: Plan, kept: Sequence[int]) -> dict[int, list[Sampled]]:
    """Draw accepted rollouts by role index: `calibration` of the default's, and as many of the roles in even
    shares.

    One pass over the lines with a reservoir for each role, seeded by the plan, so memory holds the sample
    only.
    """
    most = plan.options.calibration
    share, more = divmod(most, len(kept))
    room = {role: share + (i < more) for i, role in enumerate(kept)} | {DEFAULT: most}
    names = {plan.role(role).name: role for role in room}
    seen = dict.fromkeys(room, 0)
    chance = {role: random.Random(f"{plan.options.seed}/{role}") for role in room}
    taken: dict[int, list[Sampled]] = {role: [] for role in room}
    for line in lines:
        role = names.get(line["role"])
        if role is None or not line["accepted"]:
            continue
        seen[role] += 1
        rollout = Sampled(item_of(line, role), line["ids"])
        if len(taken[role]) < room[role]:
            taken[role].append(rollout)
        elif (place := chance[role].randrange(seen[role])) < room[role]:
            taken[role][place] = rollout
    return taken


def tables(
    chat: ChatModel,
    plan: Plan,
    directions: Tensor,
    taken: Mapping[int, Sequence[Sampled]],
    listener: Listener,
) -> Tables:
    """Read the sampled rollouts and make the four tables. `directions` [layers, hidden] are unit rows."""
    rollouts = [rollout for role in sorted(taken) for rollout in taken[role]]
    if not any(rollout.item.role != DEFAULT for rollout in rollouts):
        raise ExtractionError("no accepted role rollout to calibrate on")
    projected: dict[int, Array] = {}
    for batch, columns in _project(chat, plan, directions, rollouts):
        projected |= dict(zip(batch, columns, strict=True))
        listener(Calibrating(len(projected), len(rollouts)))
    of_default = [i for i, rollout in enumerate(rollouts) if rollout.item.role == DEFAULT]
    of_roles = [i for i, rollout in enumerate(rollouts) if rollout.item.role != DEFAULT]
    per_role: dict[int, list[int]] = {}
    for i in of_roles:
        per_role.setdefault(rollouts[i].item.role, []).append(i)
    by_rollout = np.array([1 / len(per_role[rollouts[i].item.role]) for i in of_roles])
    tokens_of = {role: sum(projected[i].shape[1] for i in members) for role, members in per_role.items()}
    by_token = np.repeat(
        [1 / tokens_of[rollouts[i].item.role] for i in of_roles], [projected[i].shape[1] for i in of_roles]
    )

    def means(members: list[int], weights: Array | None = None) -> Table:
        return weighted_quantiles(
            np.stack([projected[i].mean(axis=1, dtype=np.float64) for i in members], axis=1), weights
        )

    def tokens(members: list[int], weights: Array | None = None) -> Table:
        # One layer at a time: all tokens of all layers side by side would be the run's largest array.
        layers = (
            np.concatenate([projected[i][row] for i in members])[None] for row in range(len(directions))
        )
        return np.concatenate([weighted_quantiles(values, weights) for values in layers])

    sizes = {"default": len(of_default), "roles": len(of_roles)}
    return Tables(
        means(of_default), means(of_roles, by_rollout), tokens(of_default), tokens(of_roles, by_token), sizes
    )


def weighted_quantiles(values: Array, weights: Array | None = None) -> Table:
    """[rows, 101] quantiles of each row of `values` [rows, n]; with equal weights numpy's linear
    interpolation.

    A value stands in the middle of its weight; the ends of the scale are the smallest and the largest value.
    """
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    shares = np.ones_like(values) if weights is None else weights[order]
    place = np.cumsum(shares, axis=1) - shares / 2
    if values.shape[1] == 1:
        return np.repeat(ordered, len(PERCENTILES), axis=1)
    place = (place - place[:, :1]) / (place[:, -1:] - place[:, :1])
    rows = [np.interp(PERCENTILES / 100, at, row) for at, row in zip(place, ordered, strict=True)]
    return np.maximum.accumulate(np.array(rows), axis=1)  # rounding in interp must not unsort them


def _project(
    chat: ChatModel, plan: Plan, directions: Tensor, rollouts: Sequence[Sampled]
) -> Iterator[tuple[list[int], list[Array]]]:
    """For each batch of rollouts their places and <h, axis> of each reply token, [layers, tokens] each."""
    prompts = chat.encode_batch(plan.messages(rollout.item) for rollout in rollouts)
    sequences = [prompt + rollout.ids for prompt, rollout in zip(prompts, rollouts, strict=True)]
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    at_once = _TOKENS_AT_ONCE
    while order:
        longest, count = len(sequences[order[0]]), 1
        while count < len(order) and (count + 1) * len(sequences[order[count]]) <= at_once:
            count += 1
        batch = order[:count]
        try:
            found = read_replies(
                chat, plan.layers, directions, [sequences[i] for i in batch], [len(prompts[i]) for i in batch]
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or count == 1:
                raise
            at_once = longest * count // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        for i, projections in zip(batch, found, strict=True):
            bad = np.argwhere(~np.isfinite(projections))
            if len(bad):
                layer = plan.layers[bad[0][0]]
                raise ExtractionError(
                    f"NaN or infinite activations at layer {layer} in the rollout of "
                    f"{described(plan, rollouts[i].item)}"
                )
        yield batch, found
        order = order[count:]


@singledispatch
def read_replies(
    chat: ChatModel,
    layers: Sequence[int],
    directions: Tensor,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
) -> list[Array]:
    """Prefill one batch; each layer's hook keeps the projections of the reply tokens and nothing else.

    A reply begins at its sequence's `starts`. Gives [layers, tokens] for each. Dispatched on the kind of `chat`.
    """
    batch = chat.pad_right(sequences)
    lengths = [len(s) for s in sequences]
    own = torch.zeros_like(batch.mask, dtype=torch.bool)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        own[row, start:length] = True
    columns: dict[int, Tensor] = {}
    rows = {layer: row for row, layer in enumerate(layers)}

    def project(layer: int, hidden: Tensor) -> None:
        tokens = hidden[own.to(hidden.device)].float()
        columns[layer] = (tokens @ directions[rows[layer]].to(tokens)).cpu()

    with torch.inference_mode(), reading(chat.model, layers, project, stack=chat.layers):
        # The decoder without its head: logits of every token would need more memory than all the rest.
        chat.model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    if missed := [layer for layer in layers if layer not in columns]:
        raise ExtractionError(f"layers {missed} did not show their activations: is the model compiled?")
    scalars = torch.stack([columns[layer] for layer in layers]).numpy()
    cuts = np.cumsum([length - start for start, length in zip(starts, lengths, strict=True)])[:-1]
    return [np.asarray(part) for part in np.split(scalars, cuts, axis=1)]
