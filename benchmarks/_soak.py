"""A server under fire: clients that hang up, send rubbish, read slowly or ask too much, among clients that check.

A checking client asks for a greedy reply with log-probabilities. It must be what transformers says under the same
cap: token for token up to the first near-tie, with equal log-probabilities. On chats where the cap changes
what the model says, a reply that follows the uncapped model counts as uncapped.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import torch
from _servers import HEADERS, Server

from persona_axis import Cap, ChatModel

TOKENS = 24
CLOSE = 1e-3  # of a log-probability, between two engines in float32


class Wanted(NamedTuple):
    """What one model says to a chat: the tokens, their log-probabilities, and the lead over the second best."""

    texts: list[str]
    logprobs: list[float]
    leads: list[float]


@dataclass
class Seen:
    """What the soak saw."""

    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    checked: int = 0
    telling: int = 0
    """Checked replies to chats on which the cap changes what is said."""
    worst: float = 0.0
    """Largest difference of a log-probability."""
    memory: list[int] = field(default_factory=list)


def soak(
    server: Server, model: str, cap: Path, seconds: float, clients: int, chats: list[list[dict[str, str]]], engine: str
) -> list[str]:
    """Lines that say what happened; raises `SystemExit` where the server failed."""
    capped, plain = references(model, cap, chats)
    differing = sum(a.texts != b.texts for a, b in zip(capped, plain, strict=True))
    print(f"{len(chats)} chats, {differing} of which the cap changes; {seconds / 60:g} minutes", flush=True)
    seen = Seen()
    asyncio.run(_fire(server, chats, capped, plain, seconds, clients, seen, engine))
    early, late = (seen.memory[i] / 2**20 for i in (len(seen.memory) // 4, -1))
    lines = [
        f"- {sum(seen.kinds.values()):,} requests in {seconds / 60:g} minutes: "
        + ", ".join(f"{kind} {count:,}" for kind, count in seen.kinds.most_common()),
        "- answers: " + ", ".join(f"{status} {count:,}" for status, count in seen.statuses.most_common()),
        f"- checked replies: {seen.checked:,} ({seen.telling:,} to chats where the cap changes what is said); unlike "
        f"transformers under the cap: {len(seen.wrong)}; largest difference of a log-probability {seen.worst:.1e}",
        f"- memory after a quarter of the time and at the end: {early:,.0f} and {late:,.0f} MiB",
        f"- the server runs: {server.alive()}",
    ]
    if seen.wrong or not server.alive():
        raise SystemExit("\n".join([*lines, *seen.wrong[:5]]))
    return lines


def references(model: str, cap: Path, chats: list[list[dict[str, str]]]) -> tuple[list[Wanted], list[Wanted]]:
    """What transformers says under the cap and without, one chat at a time."""
    chat, held = ChatModel.load(model, dtype="float32"), Cap.load(cap)
    plain = [_said(chat, messages) for messages in chats]
    with held.on(chat.model):
        return [_said(chat, messages) for messages in chats], plain


def _said(chat: ChatModel, messages: list[dict[str, str]]) -> Wanted:
    ids = torch.tensor([chat.encode(messages)], device=chat.device)
    with torch.inference_mode():
        out = chat.model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, pad_token_id=chat.pad_id,
            eos_token_id=chat.stop_ids, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    logs = torch.stack(out.logits)[:, 0].float().log_softmax(-1)
    best = logs.topk(2).values
    tokens = out.sequences[0, ids.shape[1] :].tolist()
    kept = [i for i, token in enumerate(tokens) if token not in chat.stop_ids]
    texts = [chat.tokenizer.decode([tokens[i]]) for i in kept]
    return Wanted(texts, [best[i, 0].item() for i in kept], [(best[i, 0] - best[i, 1]).item() for i in kept])


async def _fire(
    server: Server, chats: list[list[dict[str, str]]], capped: list[Wanted], plain: list[Wanted], seconds: float,
    clients: int, seen: Seen, engine: str,
) -> None:  # fmt: skip
    end = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=2 * clients)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits, headers=HEADERS) as client:

        async def work(number: int) -> None:
            chance = random.Random(number)
            while time.monotonic() < end:
                kind = chance.choices(list(KINDS), list(KINDS.values()))[0] if number else "checks"
                seen.kinds[kind] += 1
                at = chance.randrange(len(chats))
                try:
                    if kind == "checks":
                        await _check(client, chats[at], capped[at], plain[at], seen)
                    else:
                        seen.statuses[f"{kind}: {await _ACTS[kind](client, chats[at], chance)}"] += 1
                except httpx.TransportError as error:
                    seen.statuses[type(error).__name__] += 1
                    if not server.alive():
                        return

        async def watch() -> None:
            while time.monotonic() < end:
                if not server.alive():
                    seen.wrong.append("the server ended")
                    return
                seen.memory.append(server.memory())
                await asyncio.sleep(min(10, seconds / 20))

        await asyncio.gather(watch(), *(work(number) for number in range(clients)))
        path = "/metrics" if engine == "own" else "/persona-axis/metrics"
        metrics = (await client.get(path)).text
    tokens, moved = (_total(metrics, f"persona_axis_{name}_total") for name in ("tokens", "capped_tokens"))
    if not 0 < moved <= tokens:
        seen.wrong.append(f"the metrics do not agree: {moved:.0f} of {tokens:.0f} tokens capped")


async def _check(
    client: httpx.AsyncClient, messages: list[dict[str, str]], capped: Wanted, plain: Wanted, seen: Seen
) -> None:
    body = {"messages": messages, "max_tokens": TOKENS, "temperature": 0, "logprobs": True}
    reply = await client.post("/v1/chat/completions", json=body)
    seen.statuses[f"checks: {reply.status_code}"] += 1
    if reply.status_code != 200:
        return
    content = reply.json()["choices"][0]["logprobs"]["content"]
    seen.checked += 1
    seen.telling += capped.texts != plain.texts
    said = [(entry["token"], entry["logprob"]) for entry in content]
    for i, (token, logprob) in enumerate(said[: len(capped.texts)]):
        if token.strip() != capped.texts[i].strip():
            if capped.leads[i] > CLOSE:
                seen.wrong.append(f"{messages[-1]['content']!r}: {token!r} in place of {capped.texts[i]!r}")
            return  # a tie; what follows was said after another token
        gap = abs(logprob - capped.logprobs[i])
        seen.worst = max(seen.worst, gap)
        if gap > CLOSE:
            seen.wrong.append(f"{messages[-1]['content']!r}: {token!r} at {logprob:.5f}, not {capped.logprobs[i]:.5f}")
            return


def _total(metrics: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(name + "{"))


async def _hangs_up(client: httpx.AsyncClient, messages: list[dict[str, str]], chance: random.Random) -> str:
    body = {"messages": messages, "max_tokens": 300, "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        lines = reply.aiter_lines()
        for _ in range(chance.randrange(1, 6)):
            await anext(lines, None)
        return str(reply.status_code)


async def _reads_slowly(client: httpx.AsyncClient, messages: list[dict[str, str]], chance: random.Random) -> str:
    body = {"messages": messages, "max_tokens": 40, "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        async for _ in reply.aiter_lines():
            await asyncio.sleep(0.05 * chance.random())
        return str(reply.status_code)


async def _rubbish(client: httpx.AsyncClient, _messages: list[dict[str, str]], chance: random.Random) -> str:
    content = chance.choice([b"{", b"", b"null", b'{"messages": 3}', bytes(chance.randrange(256) for _ in range(200))])
    headers = {"content-type": chance.choice(["application/json", "text/plain"])}
    return str((await client.post("/v1/chat/completions", content=content, headers=headers)).status_code)


async def _too_long(client: httpx.AsyncClient, messages: list[dict[str, str]], chance: random.Random) -> str:
    words = "how can you help me ".split()
    long = " ".join(chance.choice(words) for _ in range(chance.choice([600, 20_000])))
    body = {"messages": [*messages, {"role": "user", "content": long}][-1:], "max_tokens": 5}
    return str((await client.post("/v1/chat/completions", json=body)).status_code)


async def _odd_fields(client: httpx.AsyncClient, messages: list[dict[str, str]], chance: random.Random) -> str:
    odd = chance.choice([{"n": 0}, {"temperature": "hot"}, {"max_tokens": 10**9}, {"cap": None}, {"model": "other"}])
    body = {"messages": messages, "max_tokens": 5} | odd
    return str((await client.post("/v1/chat/completions", json=body)).status_code)


async def _bad_key(client: httpx.AsyncClient, messages: list[dict[str, str]], chance: random.Random) -> str:
    # vLLM's key is for the change of the cap, ours for everything.
    headers = {"Authorization": f"Bearer {chance.random()}"}
    answers = [await client.post("/persona-axis/cap", json={"cap": None}, headers=headers)]
    if answers[0].status_code == 404:
        answers = [await client.post("/v1/chat/completions", json={"messages": messages}, headers=headers)]
    return str(answers[-1].status_code)


_ACTS: dict[str, Any] = {
    "hangs up": _hangs_up, "reads slowly": _reads_slowly, "rubbish": _rubbish, "too long": _too_long,
    "odd fields": _odd_fields, "bad key": _bad_key,
}  # fmt: skip
KINDS: dict[str, float] = {"checks": 5, **dict.fromkeys(_ACTS, 1)}
