"""One answer on its way to a client: the engine's tokens as text, whole or in pieces, and its place freed at last."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from persona_axis.errors import ServeError
from persona_axis.serving._counters import Counters
from persona_axis.serving._engine import Ask, Engine, Reply
from persona_axis.serving._text import Text
from persona_axis.serving._wire import Refused, Replies, Wanted

log = logging.getLogger("persona_axis.serving")
LEAVING = Refused(503, "the server is leaving, and this reply was not finished in time", code="leaving")
_DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class Limits:
    """What one server takes on."""

    requests: int = 64
    """Waiting or being answered at once; more are told to come back."""
    body: int = 1 << 20
    """Bytes of a request."""
    seconds: float = 300.0
    """From a request to the end of its answer."""


@dataclass(frozen=True)
class Desk:
    """What every answer is made with."""

    engine: Engine
    model: str
    """What clients call it."""
    limits: Limits
    counters: Counters = field(default_factory=Counters)


class Answer:
    """One reply on its way: the engine's tokens turned into text."""

    def __init__(self, desk: Desk, asked: Wanted, ask: Ask, began: float) -> None:
        self.desk, self.asked, self.ask, self.began = desk, asked, ask, began
        chat = desk.engine.chat
        self.text = Text(lambda ids: chat.decode([ids])[0], chat.stop_ids, asked.stop)
        self.replies = Replies(desk.model, chat.tokenizer)
        self.reply: Reply | None = None
        self._told = 0

    def begin(self) -> None:
        """Hand it to the engine; from then on it has to be closed."""
        self.reply = self.desk.engine.ask(self.ask)

    def close(self) -> None:
        """Let the engine forget it."""
        if self.reply is not None:
            self.reply.close()

    def seconds_left(self) -> float:
        """Until the answer has to be finished."""
        return max(self.desk.limits.seconds - (time.monotonic() - self.began), 0.0)

    async def whole(self) -> dict[str, Any]:
        """The reply that is not streamed."""
        async for _ in self._pieces():
            pass
        return self.replies.whole(self.text.text, self._ended(), self._usage(), self._likely(), self._extra())

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The pieces of a reply that is streamed."""
        yield self.replies.chunk("", first=True)
        async for piece in self._pieces():
            likely = self._likely()
            if piece or likely:
                yield self.replies.chunk(piece, likely=likely)
        yield self.replies.chunk("", ended=self._ended(), extra=self._extra())
        if self.asked.with_usage:
            yield self.replies.usage_chunk(self._usage())

    async def _pieces(self) -> AsyncIterator[str]:
        assert self.reply is not None
        counters, first = self.desk.counters, True
        async for new in self.reply.tokens():
            if first:
                counters.first.add(time.monotonic() - self.began)
                first = False
            yield self.text.add(new, self.ask.max_tokens)
            if self.text.stopped:
                break
        yield self.text.rest()
        self.reply.close()
        counters.whole.add(time.monotonic() - self.began)
        counters.prompt_tokens += len(self.ask.prompt)
        counters.reply_tokens += len(self.text.ids)

    def _ended(self) -> str:
        return "stop" if self.text.stopped else "length"

    def _usage(self) -> tuple[int, int]:
        return len(self.ask.prompt), len(self.text.ids)

    def _likely(self) -> Any:
        """Of the tokens that stay and were not told yet."""
        assert self.reply is not None
        since, self._told = self._told, self.text.settled
        return None if self.ask.top_logprobs is None else self.reply.slot.likely[since : self._told]

    def _extra(self) -> dict[str, Any]:
        if not self.ask.projection:
            return {}
        ruler = self.desk.engine.ruler
        assert self.reply is not None and ruler is not None
        value = self.reply.projection(len(self.text.ids))
        told = None if value is None or not ruler.knows("default") else ruler.percentile(value)
        return {"persona_axis": {"layer": ruler.layer, "projection": value, "percentile": told}}


class Stream(StreamingResponse):
    """Server-sent events; however it ends, its place is free again."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(self._events(), media_type="text/event-stream", headers={"cache-control": "no-store"})
        self.answer = answer
        self.ended = "gone"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place():
            try:
                # A little longer than the events take care of themselves: for who does not read what is sent.
                async with asyncio.timeout(self.answer.seconds_left() + 5):
                    await super().__call__(scope, receive, send)
            except TimeoutError:
                self.ended = "cut"
            except asyncio.CancelledError:  # as in `guarded`; the events, cancelled as well, can say no more
                self.ended = "cut"
                last = f"{_event(LEAVING.body)}{_DONE}".encode()
                await send({"type": "http.response.body", "body": last, "more_body": False})

    @contextmanager
    def _place(self) -> Iterator[None]:
        counters = self.answer.desk.counters
        try:
            yield
        finally:
            self.answer.close()
            counters.running -= 1
            counters.requests[self.ended] += 1

    async def _events(self) -> AsyncIterator[str]:
        chunks = self.answer.chunks()
        try:
            while True:
                chunk = await asyncio.wait_for(anext(chunks), self.answer.seconds_left())
                yield _event(chunk)
        except StopAsyncIteration:
            self.ended = "200"
        except TimeoutError:
            self.ended = "cut"
            late = f"the reply was not finished after {self.answer.desk.limits.seconds:g} seconds"
            yield _event(Refused(504, late, code="timeout").body)
        except ServeError as error:
            self.ended = "failed"
            log.error("persona-axis: %s", error)
            yield _event(Refused(503, str(error)).body)
        yield _DONE


def _event(told: dict[str, Any]) -> str:
    return f"data: {json.dumps(told)}\n\n"
