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
    draws it.

    A hook only copies: what a layer gives may be overwritten by the next one. The sums are made once a step, of all
    layers of a device together, since on small models a handful of operations for each layer is felt.
    """

    def __init__(self, layers: Sequence[int], stop_ids: Sequence[int]) -> None:
        self.layers = list(layers)
        self.fed = dict.fromkeys(layers, 0)
        self.drawn = 0
        self._stop_ids = torch.tensor(list(stop_ids))
        self._alive: Tensor | None = None  # [batch] the token now fed belongs to a reply
        self._steps: dict[torch.device, _Step] = {}

    def draw(self, ids: Tensor) -> None:
        """Ids [batch] were sampled and will be fed next. A row that has drawn a stop token never counts
        again, so padding that looks like a word, or a stop token that is also the padding, makes no
        difference."""
        if self._alive is not None:
            for step in self._steps.values():
                step.add(self._alive)
        self._stop_ids = self._stop_ids.to(ids.device)
        going_on = ~torch.isin(ids, self._stop_ids)
        self._alive = going_on if self._alive is None else self._alive & going_on
        self.drawn += 1

    def read(self, layer: int, hidden: Tensor) -> None:
        """The output [batch, seq, hidden] of a layer; before the first draw it is the prompt's."""
        if not self.drawn:
            return
        step = self._steps.get(hidden.device)
        if step is None:
            step = self._steps[hidden.device] = _Step(self.layers, hidden)
        step.rows[step.place[layer]] = hidden[:, -1]
        step.held = True
        self.fed[layer] += 1

    def total(self) -> tuple[Tensor, Tensor] | None:
        """Sums [batch, layers, hidden] and norms [batch, layers] on the CPU; None where no token was fed."""
        if self._alive is None or not self._steps:
            return None
        for step in self._steps.values():
            step.add(self._alive)
        # A layer is on one device; where it is not, its rows are zeros.
        sums = torch.stack([step.sums.cpu() for step in self._steps.values()]).sum(dim=0)
        norms = torch.stack([step.norms.cpu() for step in self._steps.values()]).sum(dim=0)
        return sums.transpose(0, 1).contiguous(), norms.T.contiguous()


class _Step:
    """The layers that one device holds: their rows of this step, and the sums so far."""

    def __init__(self, layers: Sequence[int], hidden: Tensor) -> None:
        batch, _, width = hidden.shape
        self.place = {layer: i for i, layer in enumerate(layers)}
        self.rows = torch.zeros(len(layers), batch, width, device=hidden.device)
        self.sums = torch.zeros_like(self.rows)
        self.norms = torch.zeros(len(layers), batch, device=hidden.device)
        self.held = False

    def add(self, alive: Tensor) -> None:
        """Add this step's rows [layers, batch, hidden] where `alive` [batch] says so."""
        if not self.held:
            return
        self.held = False
        # Selected, not multiplied by zero: what comes after the end of a reply may be inf, and 0 * inf is nan.
        self.rows.masked_fill_(~alive.to(self.rows.device)[:, None], 0)
        self.sums += self.rows
        self.norms += torch.linalg.vector_norm(self.rows, dim=-1)


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
        ids = chat.generate_ids(prompts, sampling, seed, watch=state.draw, extra_tokens=1, end_loops=True)
    steps = state.drawn - 1
    if missed := [layer for layer in layers if state.fed[layer] != steps]:
        raise ExtractionError(
            f"layers {missed} were seen in {state.fed[missed[0]]} of {steps} steps: is the model compiled? "
            "Hooks do not run inside a graph that was compiled before"
        )
    shape = (len(prompts), len(layers))
    return Replies(ids, *(state.total() or (torch.zeros(*shape, chat.hidden_size), torch.zeros(shape))))
