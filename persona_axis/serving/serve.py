"""`persona-axis serve`: an OpenAI-compatible server for one model under one cap.

The model runs in this process, by transformers' continuous batching. Nothing is answered before the cap was proven,
in the model and in the engine.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from persona_axis.errors import ServeError
from persona_axis.serving._connections import is_loopback

if TYPE_CHECKING:
    from persona_axis.axis import Axis
    from persona_axis.cap import Cap
    from persona_axis.chat import ChatModel
    from persona_axis.serving._answer import Limits
    from persona_axis.serving._engine import Engine

INSTALL = 'pip install "persona-axis[serve]"'


@dataclass(frozen=True)
class Where:
    """The address, who may ask, and how long a server takes to leave."""

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = field(default=None, repr=False)
    drain: float = 30.0
    """Seconds that running requests are given on SIGTERM."""

    def __post_init__(self) -> None:
        if self.key is not None and not self.key.strip():
            raise ServeError("the API key is empty: give one with characters in it, or none")
        if self.key is None and not is_loopback(self.host):
            raise ServeError(
                f"{self.host} can be reached from other machines: give --api-key (or PERSONA_AXIS_API_KEY), or serve "
                "on 127.0.0.1"
            )


def serve(
    chat: ChatModel,
    cap: Cap | None,
    *,
    axis: Axis | None = None,
    layer: int | None = None,
    allow: Collection[str] = (),
    longest_prompt: int = 1024,
    longest_reply: int = 512,
    limits: Limits | None = None,
    where: Where | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C: then nothing new is taken, and what runs is finished, for `where.drain` seconds.

    Replies are measured on `axis`, where a request asks for it, at `layer` (by default where the axis recommends, or
    near it where the cap does not edit). Raises `ServeError` where the server's packages are missing, it cannot
    start, or its engine fails, and what `attach` and `Axis.require` raise.
    """
    uvicorn = require_packages()
    from persona_axis.serving._answer import Limits
    from persona_axis.serving._app import app_of
    from persona_axis.serving._engine import Engine
    from persona_axis.serving.attach import attach
    from persona_axis.talks.ruler import Ruler

    where = where or Where()
    if axis is not None:
        axis.require(chat.model, chat.template.source, allow, chat.layers)
    ruler = None if axis is None else Ruler.of(axis, [] if cap is None else [cap], layer)
    held = None
    if cap is not None:
        held = attach(chat.model, cap, template=chat.template.source, allow=allow, stack=chat.layers)
    try:
        engine = Engine(chat, held, ruler, longest_prompt=longest_prompt, longest_reply=longest_reply)
        name = chat.display_name.lower() if chat.is_troupe else chat.name
        limits = limits or Limits()
        app = app_of(engine, name, limits, where.key)
        try:
            _run(uvicorn, config_of(uvicorn, app, where, limits), engine)
        except SystemExit:  # uvicorn's way to say that it could not start, its reason logged
            taken = ServeError(f"the server cannot listen on {where.host}:{where.port}: is it taken?")
            raise getattr(app.state, "failure", None) or taken from None
    finally:
        if held is not None:
            held.detach()


def config_of(uvicorn: Any, app: Any, where: Where, limits: Limits, head_seconds: float = 20.0) -> Any:
    """How uvicorn runs the application: no WebSockets, and bounds on connections, heads and the time to leave."""
    from persona_axis.serving._connections import bounded

    # Who is refused because all places are taken has to be told so; health and metrics are asked meanwhile.
    connections = 4 * limits.requests + 64
    return uvicorn.Config(
        app, host=where.host, port=where.port, log_level="warning", timeout_graceful_shutdown=int(where.drain) or 1,
        server_header=False, lifespan="on", ws="none", http=bounded(connections, head_seconds),
    )  # fmt: skip


def _run(uvicorn: Any, config: Any, engine: Engine) -> None:
    """Raises `ServeError` where the engine ended before the server did: who watches the process may start it again."""
    failed = False

    class Server(uvicorn.Server):  # type: ignore[misc]
        """Says where it listens, once it does, and leaves when its engine does."""

        async def on_tick(self, counter: int) -> bool:
            nonlocal failed
            failed = failed or not engine.alive
            return failed or bool(await super().on_tick(counter))

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                port = self.servers[0].sockets[0].getsockname()[1]
                logging.getLogger("persona_axis.serving").warning("serving on http://%s:%d/v1", config.host, port)

    server = Server(config)
    # uvicorn drains and then raises the signal again, for whoever had it before: an orderly end is no failure.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server.run()
    finally:
        signal.signal(signal.SIGTERM, before)
    if failed:
        raise ServeError("the engine has stopped after an error, which its log tells: nothing is answered any more")


def require_packages() -> Any:
    """uvicorn. Raises `ServeError` that says what to install."""
    try:
        import starlette  # noqa: F401  what the application is made of
        import uvicorn
    except ImportError as error:
        raise ServeError(f"serving takes packages that are not installed ({error.name}): {INSTALL}") from error
    return uvicorn
