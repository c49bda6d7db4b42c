"""An engine on transformers' continuous batching: a reply that ends makes room for the next prompt at once, and what
prompts begin with alike is read once.

Which rollouts share a batch depends on when replies end, and with it the last bits of every number. So each rollout has
a random stream of its own, and is the same rollout in whatever company it is drawn, up to that rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.logits_process import LogitsProcessorList

from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError, ModelError
from persona_axis.extraction.engines import AHEAD, Job, cut, refilled
from persona_axis.extraction.means import Replies
from persona_axis.extraction.plan import Plan
from persona_axis.extraction.store import RunStore
from persona_axis.model.batching import manager_of
from persona_axis.residual import reading
from persona_axis.sampling import NucleusDraw, Sampling

_PATIENCE = 600.0  # seconds without any reply


class Continuous:
    """Draws jobs as one stream of rollouts; as many run at once as a batch of the plan has."""

    name = "continuous"
    takes_the_model = True
    """Its thread generates with the model until the last reply is there: nobody else may run it in between."""

    def __init__(self, chat: ChatModel, plan: Plan, store: RunStore) -> None:
        self.chat, self.plan = chat, plan

    def draw(self, jobs: Iterable[Job]) -> Iterator[Replies]:
        """The replies of each job, in order. Raises `ExtractionError` where the engine fails or misses a token."""
        jobs = iter(jobs)
        first = next(jobs, None)
        if first is None:
            return
        with _Running(self.chat, self.plan, len(first.prompts)) as running:
            yield from refilled(itertools.chain([first], jobs), self.plan, running)


class _Running:
    """A manager that generates, and what its rollouts have given so far."""

    def __init__(self, chat: ChatModel, plan: Plan, rows: int) -> None:
        self.chat, self.plan = chat, plan
        self.together = max(rows, plan.batch_size)
        self.tables = _Tables(plan, self.together * AHEAD, chat)
        self._ids: dict[str, list[int]] = {}
        self._undo = ExitStack()
        self._manager: Any = None

    def __enter__(self) -> _Running:
        longest = len(self.chat.encode(self.plan.messages(self.plan.longest(1)[0])))
        room = math.ceil(1.25 * longest) + self.plan.options.sampling.max_new_tokens + 1
        try:
            self._manager = manager_of(
                self.chat, self.tables.in_a_list(), room=room, together=self.together, fixed=True,
                batch_tokens=max(512, room, 2 * self.together),
            )  # fmt: skip
        except ModelError as error:
            raise ExtractionError(f"{error}; use --engine transformers") from error
        with ExitStack() as undo:  # where the start fails, no hook stays on the model
            before = self.chat.model.register_forward_pre_hook(self.tables.told_rows, with_kwargs=True)
            undo.callback(before.remove)
            layers = self.plan.layers
            undo.enter_context(reading(self.chat.model, layers, self.tables.read, stack=self.chat.layers))
            self._manager.start()
            undo.callback(lambda: self._manager.stop(block=True, hard_stop=True, timeout=60))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def add(self, prompt: list[int], seed: int) -> int:
        """Begin a rollout; gives its row."""
        row = self.tables.taken(seed)
        # One token more than allowed, and thrown away: the last one that counts is then fed, and read.
        most = self.plan.options.sampling.max_new_tokens + 1
        self._manager.add_request(
            prompt, request_id=str(row), max_new_tokens=most, eos_token_id=list(self.chat.stop_ids), row=row
        )
        return row

    def finished(self, rows: Sequence[int]) -> Replies:
        """Wait for these rows, give what they hold and free them."""
        while not all(str(row) in self._ids for row in rows):
            output = self._manager.get_result(timeout=_PATIENCE)
            if output is None:
                raise ExtractionError("transformers' continuous batching gave no reply: its thread ended or hangs")
            if output.error is not None:
                raise ExtractionError(f"transformers' continuous batching gave a rollout up: {output.error}")
            self._ids[output.request_id] = list(output.generated_tokens)
        drawn = [self._ids.pop(str(row)) for row in rows]
        longest = self.plan.options.sampling.max_new_tokens
        return self.tables.given(list(rows), [cut(reply, self.chat.stop_ids, longest) for reply in drawn])


class _Tables(ContinuousBatchingLogitsProcessor):
    """By row: random numbers, sums and norms. Row 0 is nobody's. Draws the tokens, and reads them when they are fed."""

    supported_kwargs = {"row": int}
    ignored_kwargs = ()

    def __init__(self, plan: Plan, rows: int, chat: ChatModel) -> None:
        sampling: Sampling = plan.options.sampling
        self.nucleus = NucleusDraw(sampling.temperature, sampling.top_p) if sampling.temperature else None
        self.place = {layer: i for i, layer in enumerate(plan.layers)}
        device = chat.device
        self.uniform = torch.zeros(rows + 1, sampling.max_new_tokens + 2, device=device)
        self.step = torch.zeros(rows + 1, dtype=torch.long, device=device)
        self.begun = torch.zeros(rows + 1, dtype=torch.bool, device=device)
        self.fed = torch.zeros(rows + 1, len(plan.layers), dtype=torch.long)
        self.sums = torch.zeros(rows + 1, len(plan.layers), chat.hidden_size, device=device)
        self.norms = torch.zeros(rows + 1, len(plan.layers), device=device)
        self._free = list(range(rows, 0, -1))
        self._now: tuple[Tensor, Tensor] | None = None
        self._widest = 0

    def in_a_list(self) -> Any:
        """What a manager takes as its `logit_processor`."""
        made = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([self]))
        made.tensors_required = 1
        return made

    def taken(self, seed: int) -> int:
        """A free row, made ready for a rollout."""
        row = self._free.pop()
        stream = torch.rand(self.uniform.shape[1], generator=torch.Generator().manual_seed(seed))
        self.uniform[row] = stream.to(self.uniform.device)
        self.step[row], self.begun[row] = 0, False
        for table in (self.fed, self.sums, self.norms):
            table[row] = 0
        return row

    def given(self, rows: list[int], ids: list[list[int]]) -> Replies:
        """What rows hold, which are free then. Raises `ExtractionError` if a token was not read, or read twice."""
        at = torch.tensor(rows)
        for fed, reply in zip(self.fed[at].tolist(), ids, strict=True):
            if set(fed) != {len(reply)}:
                raise ExtractionError(f"a reply has {len(reply)} tokens and its layers were read {fed} times")
        sums, norms = self.sums[at.to(self.sums.device)].cpu(), self.norms[at.to(self.norms.device)].cpu()
        self._free += rows
        return Replies(ids, sums, norms)

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Rows of logits are nobody's until they are told otherwise."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        """The row of each request; what lies behind them still holds an earlier batch and is nobody's."""
        rows = [request.state.logit_processor_kwargs.get("row", 0) for request in requests_with_new_token]
        self._widest = max(self._widest, len(rows))
        return torch.tensor(rows + [0] * (self._widest - len(rows)), dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """Logits [requests, vocabulary] in; out, 0 at the token drawn and -inf elsewhere."""
        if self.nucleus is None:
            return scores
        rows = tensor_arg[: len(scores)].long()
        token = self.nucleus.chosen(scores, self.uniform[rows, self.step[rows]][:, None])
        self.step[rows] += 1
        return torch.full_like(scores, -torch.inf).scatter_(-1, token, 0.0)

    def told_rows(self, _module: nn.Module, _args: Any, kwargs: Mapping[str, Any]) -> None:
        """Before a forward pass: which of its tokens belong to replies, and to which rows."""
        at = kwargs["logits_indices"].long()
        rows = kwargs["logits_processor_args"][0][: len(at)].long()
        own = self.begun[rows] & (rows > 0)  # a row's first token with logits is its prompt's last one
        self.begun[rows] = True
        self._now = at[own], rows[own]

    def read(self, layer: int, hidden: Tensor) -> None:
        """The output [1, tokens, hidden] of a layer in a packed batch."""
        if self._now is None:
            return
        at, rows = self._now
        place, tokens = self.place[layer], hidden[0, at.to(hidden.device)].float().to(self.sums.device)
        self.sums[:, place].index_add_(0, rows, tokens)
        self.norms[:, place].index_add_(0, rows, torch.linalg.vector_norm(tokens, dim=-1))
        self.fed[rows.cpu(), place] += 1
