"""Many clients at once, and what they waited."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from _servers import HEADERS, Server


@dataclass
class Round:
    """What one stretch of load saw."""

    seconds: float = 0.0
    tokens: int = 0
    """Completion tokens of the requests that ended in it."""
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Completion tokens a second."""
        return self.tokens / self.seconds


def stretch(
    server: Server, engine: str, chats: list[list[dict[str, str]]], clients: int, requests: int, tokens: int, seed: int
) -> Round:
    """`requests` greedy replies of `tokens` tokens, `clients` at a time; of at most so many where the engine knows no
    way to ask for more than a reply has."""
    told: dict[str, Any] = {"model": server.model(), "temperature": 0, "max_tokens": tokens}
    if engine == "vllm":
        told |= {"min_tokens": tokens, "ignore_eos": True}
    return asyncio.run(_stretch(server.url, told, chats, clients, requests, seed))


async def _stretch(
    url: str, told: dict[str, Any], chats: list[list[dict[str, str]]], clients: int, requests: int, seed: int
) -> Round:
    chance, done = random.Random(seed), Round()
    todo = [chance.choice(chats) for _ in range(requests)]
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits, headers=HEADERS) as client:

        async def work() -> None:
            while todo:
                began = time.perf_counter()
                reply = await client.post("/v1/chat/completions", json={**told, "messages": todo.pop()})
                reply.raise_for_status()
                done.latencies.append(time.perf_counter() - began)
                done.tokens += reply.json()["usage"]["completion_tokens"]

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        done.seconds = time.perf_counter() - began
    return done
