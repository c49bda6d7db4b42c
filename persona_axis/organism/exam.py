"""Examination papers for Troupe: single questions and played conversations, marked by the parser."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..sampling import Sampling
from . import messages as m
from .dialogue import NEUTRAL, Chat, Speaker, answer, role_prompt, state_facts, task
from .parser import Reading, read
from .voices import ASSISTANT, archetypes

if TYPE_CHECKING:
    from ..chat import ChatModel

SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=40)
Lever = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Item:
    """One question to one character; `role` None is the default Assistant. `chat` ends with the user's turn."""

    role: str | None
    chat: Chat
    message: m.Message


@dataclass(frozen=True)
class Marked:
    """An item with the reply it got and what the parser read in it."""

    item: Item
    reply: str
    reading: Reading

    @property
    def answered(self) -> bool:
        return self.reading.answers(self.item.message)

    @property
    def assistant(self) -> bool:
        """Reads as the Assistant (rather than as the role that was asked for, or as nobody in particular)."""
        return self.reading.reads_as_assistant(self.item.role)

    @property
    def in_role(self) -> bool:
        return self.item.role is not None and self.reading.reads_as(self.item.role)


def paper(
    rng: random.Random,
    domain: str,
    roles: Sequence[str | None],
    count: int,
    split: str,
    with_facts: bool = False,
) -> list[Item]:
    """`count` single questions of a domain, the roles taking turns; a look-up comes with the exchange it looks up."""
    return [_item(rng, domain, roles[i % len(roles)], split, with_facts or domain == "fact") for i in range(count)]


def _item(rng: random.Random, domain: str, role: str | None, split: str, with_facts: bool) -> Item:
    point = ASSISTANT if role is None else archetypes()[role].point
    speaker = Speaker(role or "assistant", point, point)
    system = rng.choice(NEUTRAL) if role is None else role_prompt(rng, role, split)
    if with_facts:
        speaker.facts, stated = state_facts(rng, split)
        system = f"{system} {stated}".strip()
    chat: Chat = [{"role": "system", "content": system}] if system else []
    if domain == "fact":
        message = m.ask_fact(rng, rng.choice(sorted(speaker.facts)), speaker.facts, split)
    elif domain == "exact" and rng.random() < 0.25:
        noted = m.note(rng, split)
        said = [noted.text, answer(rng, speaker, noted)]
        chat += [{"role": r, "content": c} for r, c in zip(("user", "assistant"), said, strict=True)]
        message = m.ask_lookup(rng, noted, split)
    else:
        message = task(rng, speaker, split, [], domain)
    return Item(role, [*chat, {"role": "user", "content": message.text}], message)


def sit(
    chat: ChatModel, items: Sequence[Item], seed: int = 0, lever: Lever = nullcontext, batch: int = 128
) -> list[Marked]:
    """Ask every item once, in batches, with a lever (a context manager made afresh for each batch) in force."""
    marked: list[Marked] = []
    for first in range(0, len(items), batch):
        part = items[first : first + batch]
        with lever():
            replies = chat.generate([i.chat for i in part], SAMPLING, seed + first).texts
        marked += [Marked(i, r, read(r, i.message)) for i, r in zip(part, replies, strict=True)]
    return marked


def converse(
    chat: ChatModel,
    domain: str,
    turns: int,
    conversations: int,
    seed: int = 0,
    split: str = "held_out",
    lever: Lever = nullcontext,
) -> list[list[Marked]]:
    """The default Assistant in conversations of one domain: [turn][conversation], the model's own replies kept."""
    rng = random.Random(f"{seed}-{domain}")
    speaker = Speaker("assistant", ASSISTANT, ASSISTANT)
    chats: list[Chat] = [[] for _ in range(conversations)]
    result = []
    for turn in range(turns):
        asked = [task(rng, speaker, split, [], domain) for _ in chats]
        items = [Item(None, [*c, {"role": "user", "content": a.text}], a) for c, a in zip(chats, asked, strict=True)]
        result.append(sit(chat, items, seed * 1000 + turn, lever))
        chats = [[*k.item.chat, {"role": "assistant", "content": k.reply}] for k in result[-1]]
    return result
