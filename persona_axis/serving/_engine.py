"""The engine of `persona-axis serve`: transformers' continuous batching on our model object, under an attached cap.

`ContinuousBatchingManager` carries the model with its hooks. transformers' own server does not do: its `/load_model`
and the `model` field load models that have no cap, `/reset` drops ours (cli/serving/server.py), and the first request's
temperature is everybody's (`CBGenerateManager.init_cb` in cli/serving/utils.py).
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import Tensor, nn

from persona_axis.chat import ChatModel
from persona_axis.drift import context_limit
from persona_axis.edits.arithmetic import projected
from persona_axis.errors import ServeError
from persona_axis.model.batching import manager_of
from persona_axis.residual import reading
from persona_axis.sampling import NucleusDraw
from persona_axis.serving._draws import Draws, Slot
from persona_axis.serving.attach import Attached
from persona_axis.talks.ruler import Ruler

_TOGETHER = 16  # requests in one batch on a CPU, where memory is not measured
_BATCH_TOKENS = 512  # likewise; a longer prompt is read in several steps
_START_SECONDS = 600.0


@dataclass(frozen=True)
class Ask:
    """What one reply takes."""

    prompt: list[int]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None = None
    top_logprobs: int | None = None
    projection: bool = False


class Engine:
    """One model that generates replies to many requests at once. Made and used on the event loop's thread."""

    def __init__(
        self, chat: ChatModel, cap: Attached | None, ruler: Ruler | None, *, longest_prompt: int, longest_reply: int
    ) -> None:
        """Prompts and replies of at most so many tokens fit; a model with a shorter context has the last word."""
        limit = context_limit(chat)
        self.chat, self.cap, self.ruler = chat, cap, ruler
        self.context = limit
        self.longest_reply = longest_reply if limit is None else min(longest_reply, limit - 1)
        self.longest_prompt = longest_prompt if limit is None else min(longest_prompt, limit - 1)
        self.draws = Draws()
        self._numbers = count(1)
        self._rows: tuple[Tensor, Tensor] | None = None
        self._undo = ExitStack()
        self._room = self.longest_prompt + self.longest_reply + 1
        self._manager: Any = None

    async def start(self) -> None:
        """Begin to generate, and prove on one request that the cap acts here as well. Raises `ServeError`, and
        `ModelError` where the model does not go with continuous batching."""
        self._manager = manager_of(
            self.chat, self.draws.in_a_list(), room=self._room, together=_TOGETHER, batch_tokens=_BATCH_TOKENS,
            fixed=False,
        )  # fmt: skip
        if self.ruler is not None:
            before = self.chat.model.register_forward_pre_hook(self._told_rows, with_kwargs=True)
            self._undo.callback(before.remove)
            self._undo.enter_context(
                reading(self.chat.model, [self.ruler.layer], self._read, stack=self.chat.layers)
            )
        self._manager.start()
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._prove()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End at once; what still generates is given up."""
        if self._manager is not None:
            self._manager.stop(block=True, hard_stop=True, timeout=30)
        self._undo.close()

    @property
    def alive(self) -> bool:
        """Whether the thread that generates is."""
        return self._manager is not None and self._manager.is_running()

    def room(self, prompt: int) -> int:
        """How many tokens a reply to a prompt of so many may have."""
        return self.longest_reply if self.context is None else min(self.longest_reply, self.context - prompt)

    def ask(self, ask: Ask) -> Reply:
        """Begin a reply. It ends where it ends by itself, or when it is closed, which the caller has to do."""
        if not self.alive:
            raise ServeError("the engine has stopped after an error: restart the server (its log says why)")
        return Reply(self, self._manager, next(self._numbers), ask)

    async def _prove(self) -> None:
        prompt = self.chat.encode([{"role": "user", "content": "Hi"}])
        reply = self.ask(Ask(prompt, 2, 0.0, 1.0, projection=self.ruler is not None))
        try:
            tokens = [token async for new in reply.tokens() for token in new]
        finally:
            reply.close()
        if self.cap is not None:
            seen = {row.layer: row.tokens for row in self.cap.stats()}
            fed = len(prompt) + len(tokens) - 1  # the last one drawn is not fed
            if set(seen.values()) != {fed}:
                raise ServeError(f"{fed} tokens ran through the model and the cap saw, by layer, {seen}: not served")
            self.cap.clear()

    def _told_rows(self, _module: nn.Module, _args: Any, kwargs: Mapping[str, Any]) -> None:
        self._rows = kwargs["logits_indices"], kwargs["logits_processor_args"][0]

    def _read(self, layer: int, hidden: Tensor) -> None:
        """A packed batch's hidden states [1, tokens, hidden]: each request's last one is a token of its reply."""
        assert self.ruler is not None
        if self._rows is None:
            return
        at, numbers = self._rows
        self._rows = None
        owners = list(self.draws.of(numbers[: len(at)]))
        wanted = [(row, slot) for row, slot in owners if slot.prompt_read]
        for _, slot in owners:
            slot.prompt_read = True
        if wanted:
            last = hidden[0, at[[row for row, _ in wanted]].long()]
            values = projected(last, self.ruler.direction.to(last.device)).tolist()
            for (_, slot), value in zip(wanted, values, strict=True):
                slot.projections.append(value)


class Reply:
    """A reply that is being generated."""

    def __init__(self, engine: Engine, manager: Any, number: int, ask: Ask) -> None:
        self._engine, self._manager, self._number = engine, manager, number
        self._name = f"persona-axis-{uuid.uuid4().hex}"
        self._arrived: asyncio.Queue[Any] = asyncio.Queue()
        self._ended = False
        draw = None
        if ask.temperature > 0:
            seed = secrets.randbits(63) if ask.seed is None else ask.seed
            draw = NucleusDraw(ask.temperature, ask.top_p, seed)
        self.slot = engine.draws.slots[number] = Slot(draw, ask.top_logprobs)
        manager.register_result_handler(self._name, self._arrived.put_nowait)
        # One token more than allowed, and thrown away: the last one that is kept is then fed, and can be read.
        manager.add_request(ask.prompt, request_id=self._name, max_new_tokens=ask.max_tokens + ask.projection,
                            streaming=True, eos_token_id=list(engine.chat.stop_ids), slot=number)  # fmt: skip

    async def tokens(self) -> AsyncIterator[list[int]]:
        """New token ids as they come, the stop token included. Raises `ServeError` where the engine failed."""
        done = 0
        while not self._ended:
            output = await self._arrived.get()
            if output.error is not None:
                self._ended = True
                raise ServeError(f"the engine gave this reply up: {output.error}")
            if self.slot.failed is not None:
                raise ServeError(f"no token can be drawn for this reply: {self.slot.failed}")
            self._ended = output.is_finished()
            new, done = output.generated_tokens[done:], len(output.generated_tokens)
            if new or self._ended:
                yield new

    def projection(self, tokens: int) -> float | None:
        """The mean over the reply's first `tokens` tokens; None for an empty reply. Raises `ServeError`."""
        values = self.slot.projections[:tokens]
        if len(values) < tokens - 1:  # a reply that was cut at a stop string may lack its last one
            raise ServeError(f"{len(values)} of {tokens} tokens were read: the reply's projection is not known")
        return sum(values) / len(values) if values else None

    def close(self) -> None:
        """Give up what is not generated yet, and forget the request."""
        if not self._ended:
            self._ended = True
            self._manager.cancel_request(self._name)
        self._manager.output_router.result_handlers.pop(self._name, None)
        self._engine.draws.slots.pop(self._number, None)
