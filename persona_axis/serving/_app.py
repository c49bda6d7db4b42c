"""The HTTP side of `persona-axis serve`: who may ask, how much, and how answers and failures are told."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from persona_axis.errors import ConversationError, ModelError, ServeError
from persona_axis.serving._answer import LEAVING, Answer, Desk, Limits, Stream
from persona_axis.serving._connections import is_loopback
from persona_axis.serving._engine import Ask, Engine
from persona_axis.serving._wire import Refused, Wanted, unknown_model, wanted
from persona_axis.serving.figures import as_json, prometheus

log = logging.getLogger("persona_axis.serving")
_BODY_SECONDS = 30.0
_LONG = 1 << 14  # characters; a text takes a millisecond for some thousands of them
_PORT = re.compile(r":\d{1,5}$")
Endpoint = Callable[[Request], Awaitable[Response]]


def app_of(engine: Engine, model: str, limits: Limits, key: str | None) -> Starlette:
    """The application. It starts the engine and stops it."""
    server = _Server(Desk(engine, model, limits), key)

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
        Route("/v1/models/{name:path}", server.guarded(server.one_model)),
        Route("/v1/chat/completions", server.guarded(server.chat), methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: refused})


class _Server:
    def __init__(self, desk: Desk, key: str | None) -> None:
        self.desk, self.key = desk, key
        self.engine, self.model, self.limits, self.counters = desk.engine, desk.model, desk.limits, desk.counters
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
            except asyncio.CancelledError:  # uvicorn's, when the time to drain is over; it lets us say so
                response = JSONResponse(LEAVING.body, LEAVING.status)
            except Exception:
                log.exception("persona-axis: a request failed in a way that nobody foresaw")
                response = JSONResponse(Refused(500, "the server failed at this request: its log says why").body, 500)
            if counted and not isinstance(response, Stream):
                self.counters.requests[str(response.status_code)] += 1
            return response

        return guarded

    async def health(self, _: Request) -> Response:
        """Whether requests can be answered."""
        alive = self.engine.alive
        return JSONResponse({"status": "ok" if alive else "the engine has stopped"}, 200 if alive else 503)

    async def models(self, _: Request) -> Response:
        """The list of the one model."""
        return JSONResponse({"object": "list", "data": [self._only()]})

    async def one_model(self, request: Request) -> Response:
        """The one model by its name, which may have slashes in it."""
        if (name := request.path_params["name"]) != self.model:
            raise unknown_model(self.model, name)
        return JSONResponse(self._only())

    def _only(self) -> dict[str, Any]:
        return {"id": self.model, "object": "model", "created": self.started, "owned_by": "persona-axis"}

    async def metrics(self, _: Request) -> Response:
        """What the cap did, and what the requests took."""
        cap = self.engine.cap
        told = "" if cap is None else prometheus(as_json(await asyncio.to_thread(cap.stats)))
        return PlainTextResponse(told + self.counters.text(), media_type="text/plain; version=0.0.4")

    async def chat(self, request: Request) -> Response:
        """A reply, whole or as a stream."""
        began = time.monotonic()
        self._require_place()
        # A body that is on its way holds no place: what bounds these are its size, its time and the connections.
        asked = wanted(await self._body(request), self.model, request.headers.get("x-persona-axis"))
        self._require_place()
        self.counters.running += 1
        streams = False
        try:
            answer = Answer(self.desk, asked, await self._ask(asked), began)
            if asked.stream:
                answer.begin()
                streams = True
                return Stream(answer)
            return await self._whole(request, answer)
        finally:
            if not streams:
                self.counters.running -= 1

    def _require_place(self) -> None:
        if self.counters.running >= self.limits.requests:
            raise Refused(429, f"{self.counters.running} requests are waiting or being answered: come back later",
                          code="too_many_requests")  # fmt: skip

    async def _whole(self, request: Request, answer: Answer) -> Response:
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

    async def _ask(self, asked: Wanted) -> Ask:
        engine = self.engine
        if asked.projection and engine.ruler is None:
            raise Refused(400, "persona_axis.projection: this server was started without --axis", param="persona_axis")
        try:
            if sum(len(message["content"]) for message in asked.messages) > _LONG:  # the others' replies go on
                prompt = await asyncio.to_thread(engine.chat.encode, asked.messages)
            else:
                prompt = engine.chat.encode(asked.messages)
        except (ModelError, ConversationError) as error:
            raise Refused(400, f"messages: {error}", param="messages") from error
        if len(prompt) > engine.longest_prompt:
            raise Refused(
                400, f"the messages are {len(prompt)} tokens, of which this server reads at most "
                f"{engine.longest_prompt}", param="messages", code="context_length_exceeded",
            )  # fmt: skip
        if asked.max_tokens is not None and asked.max_tokens > engine.longest_reply:
            raise Refused(400, f"{asked.limit}: {asked.max_tokens} is more than this server's {engine.longest_reply}",
                          param=asked.limit)  # fmt: skip
        room = engine.room(len(prompt))
        longest = room if asked.max_tokens is None else min(asked.max_tokens, room)
        return Ask(prompt, longest, asked.temperature, asked.top_p, asked.seed, asked.top_logprobs, asked.projection)

    def _admit(self, request: Request) -> None:
        if self.key is None:
            # A web page may resolve its own name to this machine, and would then speak for its visitor.
            host = request.headers.get("host", "")
            if not is_loopback(_PORT.sub("", host).strip("[]").lower()):
                raise Refused(403, f"this server answers on the loopback only, not as {host[:80]!r}")
            return
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode("latin-1"), f"Bearer {self.key}".encode()):  # bytes as they came
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
        except ClientDisconnect:
            raise Refused(499, "the client went away before its body was here") from None  # nobody reads it; counted
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {_BODY_SECONDS:g} seconds") from None
        try:
            parsed = json.loads(body)
            json.dumps(parsed, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise Refused(400, "the body has half of a character (a lone surrogate)") from error
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON: {error}") from error
        return parsed


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
