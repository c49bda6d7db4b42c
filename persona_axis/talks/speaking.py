"""One turn of a batch of conversations: the replies, and where they lie along directions, read while they are said."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor

from persona_axis.chat import ChatModel
from persona_axis.edits.arithmetic import projected
from persona_axis.errors import DriftError
from persona_axis.levers import Levers, listed
from persona_axis.model.memory import Memory
from persona_axis.residual import reading
from persona_axis.sampling import Sampling


class Spoken(NamedTuple):
    """Replies as token ids without stop tokens, and by layer each reply's mean projection, NaN for an empty one.

    `before` is the stream as it reaches the levers' edit of that layer (edits of earlier layers are in it), and empty
    without levers.
    """

    ids: list[list[int]]
    projections: dict[int, list[float]]
    before: dict[int, list[float]]


class _Reader:
    """The projection of each token that is fed, per layer and step; float32 at least."""

    def __init__(self, directions: Mapping[int, Tensor]) -> None:
        self.directions = dict(directions)
        self.steps: dict[int, list[Tensor]] = {layer: [] for layer in directions}

    def __call__(self, layer: int, hidden: Tensor) -> None:
        """The output [batch, seq, hidden] of a layer: first the prompt's, then that of one reply token a step."""
        if self.directions[layer].device != hidden.device:
            self.directions[layer] = self.directions[layer].to(hidden.device)
        self.steps[layer].append(projected(hidden[:, -1], self.directions[layer]))

    def means(self, lengths: Sequence[int], runs: int) -> dict[int, list[float]]:
        """Means over each reply's own tokens; `runs` is how often the model ran."""
        if missed := [layer for layer, steps in self.steps.items() if len(steps) != runs]:
            raise DriftError(
                f"layers {missed} were read in {len(self.steps[missed[0]])} of {runs} runs of the model: is it "
                "compiled? Hooks do not run inside a graph that was compiled before"
            )
        found = {}
        for layer, steps in self.steps.items():
            # What rows go through after their end is not selected, so it may be anything, inf and nan included.
            table = torch.stack(steps[1:]).cpu().double() if runs > 1 else torch.zeros(0, len(lengths))
            found[layer] = [float(table[:length, row].mean()) for row, length in enumerate(lengths)]
        return found


def speak(
    chat: ChatModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seed: int,
    *,
    directions: Mapping[int, Tensor] | None = None,
    lever: Levers = None,
    allow: Collection[str] = (),
    memory: Memory | None = None,
    processors: Sequence[LogitsProcessor] | None = None,
) -> Spoken:
    """One reply to each encoded prompt under the levers, with its mean projection on `directions` ([hidden] by layer).

    `processors` choose the tokens in place of the sampling's own.

    One token more than allowed is drawn and thrown away, so that the last token of a reply cut at the limit is fed,
    read and remembered like any other. Raises what the levers raise, and `DriftError` where hooks did not run.
    """
    levers = listed(lever)
    before, after = _Reader(directions or {} if levers else {}), _Reader(directions or {})
    runs = 0

    def ran(_: Tensor) -> None:
        nonlocal runs
        runs += 1

    with ExitStack() as stack:
        # Hooks act in the order they are entered: one reading before the edit, one after it.
        stack.enter_context(reading(chat.model, before.directions, before, stack=chat.layers))
        stack.enter_context(chat.under(levers, allow))
        stack.enter_context(reading(chat.model, after.directions, after, stack=chat.layers))
        ids = chat.generate_ids(
            prompts, sampling, seed, watch=ran, extra_tokens=1, memory=memory, processors=processors
        )
    lengths = [len(reply) for reply in ids]
    return Spoken(ids, after.means(lengths, runs), before.means(lengths, runs))
