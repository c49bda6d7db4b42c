"""Mean activations of replies, accumulated while they are generated.

No second pass and no tensor of (layers, tokens, hidden): each layer's hook adds one row per rollout and step
to a float32 sum of [batch, hidden], and that is all that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor

from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.residual import reading
from persona_axis.sampling import Sampling


class Replies(NamedTuple):
    """One generated batch: token ids without stop tokens, their `sums` over tokens [batch, layers, hidden]
    float32 on the CPU, and the sums over tokens of the activations' norms [batch, layers] float32."""

    ids: list[list[int]]
    sums: Tensor
    norms: Tensor


class Sums:
    """What the hooks write to. A token's activation is read in the step that feeds it, not in the one that
    draws it."""

    def __init__(self, layers: Sequence[int], stop_ids: Sequence[int]) -> None:
        self.sums: dict[int, Tensor] = {}
        self.norms: dict[int, Tensor] = {}
        self.fed = dict.fromkeys(layers, 0)
        self.drawn = 0
        self._stop_ids = torch.tensor(list(stop_ids))
        self._alive: dict[
            torch.device, Tensor
        ] = {}  # [batch, 1] the token now fed belongs to a reply; one per device

    def draw(self, ids: Tensor) -> None:
        """Ids [batch] were sampled and will be fed next. A row that has drawn a stop token never counts
        again, so padding that looks like a word, or a stop token that is also the padding, makes no
        difference."""
        self._stop_ids = self._stop_ids.to(ids.device)
        going_on = ~torch.isin(ids, self._stop_ids)[:, None]
        if self._alive:
            going_on &= self._alive[ids.device]
        self._alive = {ids.device: going_on}
        self.drawn += 1

    def read(self, layer: int, hidden: Tensor) -> None:
        """The output [batch, seq, hidden] of a layer; before the first draw it is the prompt's."""
        if not self.drawn:
            return
        alive = self._alive.get(hidden.device)
        if alive is None:
            first = next(iter(self._alive.values()))
            alive = self._alive[hidden.device] = first.to(hidden.device)
        # Selected, not multiplied by zero: what comes after the end of a reply may be inf, and 0 * inf is
        # nan.
        row = hidden[:, -1]
        own = torch.where(alive, row, torch.zeros((), dtype=row.dtype, device=row.device))
        norm = torch.linalg.vector_norm(own, dim=-1, dtype=torch.float32)
        if layer not in self.sums:
            self.sums[layer] = own.to(torch.float32, copy=True)
            self.norms[layer] = norm
        else:
            self.sums[layer] += own
            self.norms[layer] += norm
        self.fed[layer] += 1


@singledispatch
def generate_with_means(
    chat: ChatModel, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int, layers: Sequence[int]
) -> Replies:
    """Draw one reply to each encoded prompt and the sums over its tokens at the output of each of `layers`.

    One token more than allowed is drawn and thrown away, so that the last token of a reply cut at the limit
    is fed and counts like any other. Raises `ExtractionError` if a layer's hook did not run at every step (a
    compiled model does not see hooks that come late). Dispatched on the kind of `chat`: a substrate reads otherwise.
    """
    state = Sums(layers, chat.stop_ids)
    with reading(chat.model, layers, state.read, stack=chat.layers):
        ids = chat.generate_ids(prompts, sampling, seed, watch=state.draw, extra_tokens=1)
    steps = state.drawn - 1
    if missed := [layer for layer in layers if state.fed[layer] != steps]:
        raise ExtractionError(
            f"layers {missed} were seen in {state.fed[missed[0]]} of {steps} steps: is the model compiled? "
            "Hooks do not run inside a graph that was compiled before"
        )
    if not steps:
        shape = (len(prompts), len(layers))
        return Replies(ids, torch.zeros(*shape, chat.hidden_size), torch.zeros(shape))
    sums = torch.stack([state.sums[layer].cpu() for layer in layers], dim=1)
    return Replies(ids, sums, torch.stack([state.norms[layer].cpu() for layer in layers], dim=1))
