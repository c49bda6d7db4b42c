"""Which tokens of a vLLM step are a prompt's and which are a reply's, by what the scheduler tells every worker.

A token is its request's prompt as long as its position lies in it, also where the prompt is read in pieces, or read
again after the request was put off. Nothing of this lies in a graph: eager and compiled steps are told apart alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

KINDS = ("prompt", "reply")
MIXED = "mixed"
"""Of a step whose rows cannot be told apart: an engine that does not say whose they are."""


class Kinds:
    """The prompt's length of each request that is on its way, and whose prompt is not read to its end."""

    def __init__(self) -> None:
        self._prompts: dict[str, int] = {}
        self._reading: set[str] = set()

    def split(self, scheduled: Any, runner: Any, seen: Tensor) -> Iterator[tuple[str, Tensor]]:
        """`seen` [layers, tokens] of the step that `runner` has just run, by kind."""
        if not self._reading:  # most steps: nobody is asked one by one
            yield "reply", seen
            return
        steps = {name: (self._prompts.get(name), start, count) for name, start, count in _scheduled(scheduled)}
        self._reading -= {name for name, (length, start, count) in steps.items() if start + count >= (length or 0)}
        # Of each request, its tokens in this step and how many of them are its prompt's.
        parts = {
            name: (count, min(max(length - start, 0), count))
            for name, (length, start, count) in steps.items()
            if length is not None
        }
        tokens, prompts = (sum(column) for column in zip(*parts.values(), strict=True)) if parts else (0, 0)
        if len(parts) == len(steps) and prompts in (0, tokens):
            yield KINDS[not prompts], seen
            return
        order = _order(runner)
        if order is None or sorted(order) != sorted(parts) or tokens != seen.shape[1]:
            yield MIXED, seen
            return
        runs = [run for name in order for run in (parts[name][1], parts[name][0] - parts[name][1])]
        reply = np.repeat([False, True] * len(order), runs)
        for kind, at in zip(KINDS, (~reply, reply), strict=True):
            yield kind, seen[:, torch.from_numpy(np.flatnonzero(at)).to(seen.device)]

    def note(self, scheduled: Any) -> None:
        """What the scheduler says of requests that begin and end; of every step, also of one without tokens."""
        for name in scheduled.finished_req_ids:
            self._prompts.pop(name, None)
            self._reading.discard(name)
        for new in scheduled.scheduled_new_reqs:
            ids = new.prompt_token_ids
            self._prompts[new.req_id] = len(new.prompt_embeds if ids is None else ids)
            self._reading.add(new.req_id)
        self._reading |= scheduled.scheduled_cached_reqs.resumed_req_ids


def _scheduled(scheduled: Any) -> Iterator[tuple[str, int, int]]:
    """Name, tokens that were computed before, and tokens now, of each request."""
    count, cached = scheduled.num_scheduled_tokens, scheduled.scheduled_cached_reqs
    for new in scheduled.scheduled_new_reqs:
        yield new.req_id, new.num_computed_tokens, count.get(new.req_id, 0)
    for name, start in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
        yield name, start, count.get(name, 0)


def _order(runner: Any) -> Sequence[str] | None:
    """The requests in the order of their rows: vLLM's second runner keeps the step's batch, the first one its own."""
    step = getattr(getattr(runner, "execute_model_state", None), "input_batch", None)
    return getattr(step or getattr(runner, "input_batch", None), "req_ids", None)
