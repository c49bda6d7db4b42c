"""Connections that ask for nothing do not stay: how many there may be, and how long the head of a request may take.

uvicorn bounds neither. Its h11 protocol is named here because it bounds the size of a head; the other one that it
takes where it finds it does not.
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any


def bounded(most: int, seconds: float) -> Any:
    """The protocol class for `uvicorn.Config(http=...)`: at most so many connections, each without a request on it
    closed after `seconds` to twice that."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Bounded(H11Protocol):
        """uvicorn's own, with a clock."""

        clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.close()
            else:
                self.clock = self.loop.call_later(seconds, self._look, self.cycle)

        def connection_lost(self, exc: Exception | None) -> None:
            if self.clock is not None:
                self.clock.cancel()
            super().connection_lost(exc)

        def _look(self, before: Any) -> None:
            """Close, unless a request is under way or came since the last look."""
            if self.cycle is before and (before is None or before.response_complete):
                self.transport.close()
            else:
                self.clock = self.loop.call_later(seconds, self._look, self.cycle)

    return Bounded


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, and nobody else's."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
