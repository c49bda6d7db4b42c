"""How a server draws: each request of a packed batch with its own temperature, nucleus and seed.

transformers' continuous batching has one sampling for all requests and one random state. It takes a processor of the
logits, though, that is told which request each row belongs to; this one leaves the token it drew as the only one, so
that the greedy choice which follows is that token. A seed gives what `ChatModel.generate` gives for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.logits_process import LogitsProcessorList

from persona_axis.sampling import NucleusDraw

NOBODY = 0


class Likely(NamedTuple):
    """The log probability of a token that was drawn, and the most likely ones, by the model's own distribution."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass
class Slot:
    """One request that is generating: how it draws and what was noted."""

    draw: NucleusDraw | None
    """None is greedy."""
    top_logprobs: int | None = None
    """How many of the most likely tokens to note at each step; None notes nothing."""
    likely: list[Likely] = field(default_factory=list)
    projections: list[float] = field(default_factory=list)
    """Of each of the reply's own tokens, once it was fed."""
    prompt_read: bool = False
    failed: Exception | None = None
    """What kept it from drawing; nobody else's reply ends for it."""


class Draws(ContinuousBatchingLogitsProcessor):
    """The slots of all requests, by number; number 0 is nobody's."""

    supported_kwargs = {"slot": int}
    ignored_kwargs = ()

    def __init__(self) -> None:
        self.slots: dict[int, Slot] = {}
        self._widest = 0

    def in_a_list(self) -> Any:
        """What a manager takes as its `logit_processor`."""
        made = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([self]))
        made.tensors_required = 1
        return made

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Rows are nobody's until they are told otherwise."""
        int32_tensor.fill_(NOBODY)

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        """The slot of each row of logits; the rows behind them, which still hold an earlier batch, are nobody's."""
        numbers = [request.state.logit_processor_kwargs.get("slot", NOBODY) for request in requests_with_new_token]
        self._widest = max(self._widest, len(numbers))
        return torch.tensor(numbers + [NOBODY] * (self._widest - len(numbers)), dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """Logits [rows, vocabulary] in; out, the rows of requests that sample have one finite element."""
        out = scores
        for row, slot in self.of(tensor_arg[: len(scores)]):
            if slot.draw is not None and slot.failed is None:
                out = scores.clone() if out is scores else out
                try:
                    out[row] = slot.draw(tensor_arg, scores[row : row + 1])[0]  # it does not look at ids
                except Exception as error:  # in the one thread that draws for all; told where the reply is read
                    slot.failed = error
            if slot.top_logprobs is not None:
                slot.likely.append(_likely(scores[row], int(out[row].argmax()), slot.top_logprobs))
        return out

    def of(self, numbers: Tensor) -> Iterator[tuple[int, Slot]]:
        """The rows that are somebody's, and whose."""
        for row, number in enumerate(numbers.tolist()):
            if (slot := self.slots.get(number)) is not None:
                yield row, slot


def _likely(scores: Tensor, token: int, top: int) -> Likely:
    logprobs = scores.float().log_softmax(-1)
    values, ids = logprobs.topk(min(top, len(logprobs)))
    return Likely(token, logprobs[token].item(), list(zip(ids.tolist(), values.tolist(), strict=True)))
