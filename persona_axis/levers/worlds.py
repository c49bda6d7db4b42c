"""Worlds of the imaginary listener: one conversation as it would stand with other personas or after other histories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from persona_axis._asked import require, require_each, require_messages
from persona_axis.errors import ListenerError
from persona_axis.model.windows import context_limit

if TYPE_CHECKING:
    from persona_axis.chat import ChatModel
    from persona_axis.template import Messages

Worlds: TypeAlias = "Sequence[Messages]"
"""The same conversation in each world, the true one first; each ends where the reply begins."""


def persona_worlds(messages: Messages, distractors: Sequence[str]) -> list[list[Mapping[str, str]]]:
    """`messages`, and the same with each distractor in place of the system prompt ("" is none).

    Raises `ListenerError` without distractors, and for one that is the persona itself.
    """
    require_messages(messages)
    distractors = require_each("distractors", distractors, str, ListenerError)
    own, rest = persona_of(messages), [m for m in messages if m["role"] != "system"]
    _refuse_none(distractors, "distractor")
    for i, other in enumerate(distractors):
        if same_persona(other, own):
            raise ListenerError(
                f"distractor {i} is the persona itself ({own[:60]!r}): nothing could tell them apart, choose another"
            )
    told = [[{"role": "system", "content": other}] if other.strip() else [] for other in distractors]
    return [list(messages), *([*system, *rest] for system in told)]


def history_worlds(messages: Messages, histories: Sequence[Messages]) -> list[list[Mapping[str, str]]]:
    """`messages`, and its persona and last message after each of other histories instead of its own.

    A history is what was said before, user and assistant in turn, so it ends with a reply; a system prompt in it is
    left out. Raises `ListenerError` without histories, for one that is the conversation's own, and for one that does
    not end with a reply.
    """
    require_messages(messages)
    histories = require_each("histories", histories, Sequence, ListenerError)
    system = [m for m in messages if m["role"] == "system"]
    said = [m for m in messages if m["role"] != "system"]
    _refuse_none(histories, "history")
    worlds: list[list[Mapping[str, str]]] = [list(messages)]
    for i, history in enumerate(histories):
        if len(history):
            require_messages(history, f"history {i}: ")
        other = [m for m in history if m["role"] != "system"]
        if other and other[-1]["role"] != "assistant":
            raise ListenerError(f"history {i} ends with the {other[-1]['role']}: it must end with a reply, or be empty")
        if [dict(m) for m in other] == [dict(m) for m in said[:-1]]:
            raise ListenerError(f"history {i} is the conversation's own: nothing could tell them apart, choose another")
        worlds.append([*system, *other, *said[-1:]])
    return worlds


def persona_of(messages: Messages) -> str:
    """The system prompt, or ""."""
    return next((m["content"] for m in messages if m["role"] == "system"), "")


def same_persona(a: str, b: str) -> bool:
    """The same words, whatever the case and spacing."""
    return a.lower().split() == b.lower().split()


def encode_worlds(chat: ChatModel, worlds: Sequence[Worlds], room: int | None = 0) -> list[list[list[int]]]:
    """Token ids of every conversation's worlds, [conversation][world], each with the header of the reply.

    Raises `ListenerError` where there is nothing to tell apart (no conversation, one world, one that reads as the
    true one does), where conversations have different numbers of worlds, and where a world and `room` more tokens are
    longer than the model can read (`room` None: that is not asked).
    """
    from persona_axis.chat import ChatModel

    require("chat", chat, ChatModel)
    worlds = require_each("worlds", worlds, Sequence, ListenerError)
    if not worlds:
        raise ListenerError("no conversations: give at least one, in its worlds")
    counts = [len(row) for row in worlds]
    if min(counts) < 2:
        raise ListenerError(
            f"conversation {counts.index(min(counts))} has {min(counts)} world: a listener needs the true one and at "
            "least one distractor"
        )
    if uneven := [i for i, n in enumerate(counts) if n != counts[0]]:
        raise ListenerError(
            f"conversation 0 has {counts[0]} worlds and conversation {uneven[0]} has {counts[uneven[0]]}: "
            "all of a batch need as many"
        )
    flat = chat.encode_batch(messages for row in worlds for messages in row)
    rows = [flat[i : i + counts[0]] for i in range(0, len(flat), counts[0])]
    limit = context_limit(chat)
    for i, row in enumerate(rows):
        for k, ids in enumerate(row):
            if limit is not None and room is not None and len(ids) + room > limit:
                raise ListenerError(
                    f"world {k} of conversation {i} is {len(ids)} tokens long, and with {room} more for the reply the "
                    f"model cannot read it ({limit} at most): shorten the conversation, the reply or the distractor"
                )
            if k and ids == row[0]:
                raise ListenerError(
                    f"world {k} of conversation {i} reads exactly as the true one does (is it the persona itself, or "
                    "does the chat template leave personas out?): nothing could tell them apart"
                )
    return rows


def _refuse_none(given: Sequence[object], what: str) -> None:
    if not given:
        raise ListenerError(f"no {what}: a listener needs at least one other world to tell the true one from")
