"""Conversations for tests of signals."""

from __future__ import annotations

from persona_axis.conversations import Conversation


def talk(name: str, *said: str, system: str = "") -> Conversation:
    """User and agent in turns, the user first."""
    told = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return Conversation(name, (*told, *({"role": roles[i % 2], "content": text} for i, text in enumerate(said))))


EMPTY = Conversation("empty", ())
SILENT = Conversation("silent", ({"role": "user", "content": "hello?"},))


def values(found) -> list[float]:
    return found.frame["value"].tolist()
