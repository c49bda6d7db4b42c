"""The HTTP side of `persona-axis serve`: who may ask, how much, and how answers and failures are told."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from persona_axis.errors import ConversationError, ModelError, ServeError
from persona_axis.serving._counters import Counters
from persona_axis.serving._engine import Ask, Engine, Reply
from persona_axis.serving._wire import Refused, Replies, Text, Wanted, wanted
from persona_axis.serving.figures import as_json, prometheus

log = logging.getLogger("persona_axis.serving")
_BODY_SECONDS = 30.0
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Limits:
    """What one server takes on."""

    requests: int = 64
    """Waiting or being answered at once; more are told to come back."""
    body: int = 1 << 20
    """Bytes of a request."""
    seconds: float = 300.0
    """From a request to the end of its answer."""


def app_of(engine: Engine, model: str, limits: Limits, key: str | None) -> Starlette:
    """The application. It starts the engine and stops it."""
    server = _Server(engine, model, limits, key)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.failure = None
        try:
            await engine.start()
        except Exception as error:
            app.state.failure = error  # for whoever runs the server, who gets to see no more than that it ended
            raise
        try:
            yield
        finally:
            await asyncio.to_thread(engine.stop)

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse(Refused(error.status_code, error.detail).body, error.status_code, headers=error.headers)

    routes = [
        Route("/health", server.health),
        Route("/metrics", server.guarded(server.metrics)),
        Route("/v1/models", server.guarded(server.models)),
        Route("/v1/chat/completions", server.guarded(server.chat), methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: refused})


class _Server:
    def __init__(self, engine: Engine, model: str, limits: Limits, key: str | None) -> None:
        self.engine, self.model, self.limits, self.key = engine, model, limits, key
        self.counters = Counters()
        self.started = int(time.time())

    def guarded(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint for who may ask, every failure told in OpenAI's shape."""

        async def guarded(request: Request) -> Response:
            counted = endpoint == self.chat
            try:
                self._admit(request)
                response = await endpoint(request)
            except Refused as error:
                more = {"retry-after": "1"} if error.status == 429 else {}
                response = JSONResponse(error.body, error.status, headers=more)
            except ServeError as error:
                log.error("persona-axis: %s", error)
                response = JSONResponse(Refused(503, str(error)).body, 503)
            if counted and not isinstance(response, _Stream):
                self.counters.requests[str(response.status_code)] += 1
            return response

        return guarded

    async def health(self, _: Request) -> Response:
        """Whether requests can be answered."""
        alive = self.engine.alive
        return JSONResponse({"status": "ok" if alive else "the engine has stopped"}, 200 if alive else 503)

    async def models(self, _: Request) -> Response:
        """The one model."""
        only = {"id": self.model, "object": "model", "created": self.started, "owned_by": "persona-axis"}
        return JSONResponse({"object": "list", "data": [only]})

    async def metrics(self, _: Request) -> Response:
        """What the cap did, and what the requests took."""
        cap = self.engine.cap
        told = "" if cap is None else prometheus(as_json(await asyncio.to_thread(cap.stats)))
        return PlainTextResponse(told + self.counters.text(), media_type="text/plain; version=0.0.4")

    async def chat(self, request: Request) -> Response:
        """A reply, whole or as a stream."""
        began = time.monotonic()
        if self.counters.running >= self.limits.requests:
            raise Refused(429, f"{self.counters.running} requests are waiting or being answered: come back later",
                          code="too_many_requests")  # fmt: skip
        self.counters.running += 1
        streams = False
        try:
            asked = wanted(await self._body(request), self.model, request.headers.get("x-persona-axis"))
            answer = _Answer(self, asked, self._ask(asked), began)
            if asked.stream:
                answer.begin()
                streams = True
                return _Stream(answer)
            return await self._whole(request, answer)
        finally:
            if not streams:
                self.counters.running -= 1

    async def _whole(self, request: Request, answer: _Answer) -> Response:
        answer.begin()
        task = asyncio.ensure_future(answer.whole())
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({task, gone}, timeout=answer.seconds_left(), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return JSONResponse(task.result())
            if gone.done():
                return Response(status_code=499)  # nobody reads it; it is counted
            raise Refused(504, f"the reply was not finished after {self.limits.seconds:g} seconds", code="timeout")
        finally:
            task.cancel()
            gone.cancel()
            answer.close()

    def _ask(self, asked: Wanted) -> Ask:
        engine = self.engine
        if asked.projection and engine.ruler is None:
            raise Refused(400, "persona_axis.projection: this server was started without --axis", param="persona_axis")
        try:
            prompt = engine.chat.encode(asked.messages)
        except (ModelError, ConversationError) as error:
            raise Refused(400, f"messages: {error}", param="messages") from error
        if len(prompt) > engine.longest_prompt:
            raise Refused(
                400, f"the messages are {len(prompt)} tokens, of which this server reads at most "
                f"{engine.longest_prompt}", param="messages", code="context_length_exceeded",
            )  # fmt: skip
        if asked.max_tokens is not None and asked.max_tokens > engine.longest_reply:
            raise Refused(400, f"max_tokens: {asked.max_tokens} is more than this server's {engine.longest_reply}",
                          param="max_tokens")  # fmt: skip
        room = engine.room(len(prompt))
        longest = room if asked.max_tokens is None else min(asked.max_tokens, room)
        return Ask(prompt, longest, asked.temperature, asked.top_p, asked.seed, asked.top_logprobs, asked.projection)

    def _admit(self, request: Request) -> None:
        if self.key is None:
            # A web page may resolve its own name to this machine, and would then speak for its visitor.
            if request.url.hostname not in _LOOPBACK:
                raise Refused(403, f"this server answers on the loopback only, not as {request.url.hostname!r}")
            return
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.key}".encode()):
            raise Refused(401, "this server asks for its API key: Authorization: Bearer KEY", code="invalid_api_key")

    async def _body(self, request: Request) -> Any:
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise Refused(415, "expected a body of the type application/json")
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for piece in request.stream():
                    body += piece
                    if len(body) > self.limits.body:
                        raise Refused(413, f"the body has more than this server's {self.limits.body} bytes")
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {_BODY_SECONDS:g} seconds") from None
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON: {error}") from error


class _Answer:
    """One reply on its way: the engine's tokens turned into text."""

    def __init__(self, server: _Server, asked: Wanted, ask: Ask, began: float) -> None:
        self.server, self.asked, self.ask, self.began = server, asked, ask, began
        chat = server.engine.chat
        self.text = Text(lambda ids: chat.decode([ids])[0], chat.stop_ids, asked.stop)
        self.replies = Replies(server.model, lambda token: str(chat.tokenizer.decode([token])))
        self.reply: Reply | None = None
        self._told = 0

    def begin(self) -> None:
        """Hand it to the engine; from then on it has to be closed."""
        self.reply = self.server.engine.ask(self.ask)

    def close(self) -> None:
        """Let the engine forget it."""
        if self.reply is not None:
            self.reply.close()

    def seconds_left(self) -> float:
        """Until the answer has to be finished."""
        return max(self.server.limits.seconds - (time.monotonic() - self.began), 0.0)

    async def whole(self) -> dict[str, Any]:
        """The reply that is not streamed."""
        async for _ in self._pieces():
            pass
        return self.replies.whole(self.text.text, self._ended(), self._usage(), self._likely(0), self._extra())

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The pieces of a reply that is streamed."""
        yield self.replies.chunk("", first=True)
        async for piece in self._pieces():
            likely = self._likely(self._told)
            self._told = len(self.text.ids)
            if piece or likely:
                yield self.replies.chunk(piece, likely=likely)
        yield self.replies.chunk("", ended=self._ended(), extra=self._extra())
        if self.asked.with_usage:
            yield self.replies.usage_chunk(self._usage())

    async def _pieces(self) -> AsyncIterator[str]:
        assert self.reply is not None
        counters, first = self.server.counters, True
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

    def _likely(self, since: int) -> Any:
        assert self.reply is not None
        return None if self.ask.top_logprobs is None else self.reply.slot.likely[since : len(self.text.ids)]

    def _extra(self) -> dict[str, Any]:
        if not self.ask.projection:
            return {}
        ruler = self.server.engine.ruler
        assert self.reply is not None and ruler is not None
        value = self.reply.projection(len(self.text.ids))
        told = None if value is None or not ruler.knows("default") else ruler.percentile(value)
        return {"persona_axis": {"layer": ruler.layer, "projection": value, "percentile": told}}


class _Stream(StreamingResponse):
    """Server-sent events; however it ends, its place is free again."""

    def __init__(self, answer: _Answer) -> None:
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

    @contextmanager
    def _place(self) -> Iterator[None]:
        counters = self.answer.server.counters
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
                yield f"data: {json.dumps(chunk)}\n\n"
        except StopAsyncIteration:
            self.ended = "200"
        except TimeoutError:
            self.ended = "cut"
            late = f"the reply was not finished after {self.answer.server.limits.seconds:g} seconds"
            yield f"data: {json.dumps(Refused(504, late, code='timeout').body)}\n\n"
        except ServeError as error:
            self.ended = "failed"
            log.error("persona-axis: %s", error)
            yield f"data: {json.dumps(Refused(503, str(error)).body)}\n\n"
        yield "data: [DONE]\n\n"


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
