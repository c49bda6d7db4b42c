"""The lines of a conversation that signals look at: what the agent said, and what it was said to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from persona_axis._asked import shown, whole
from persona_axis.conversations import Conversation, check_messages
from persona_axis.errors import ConversationError, SignalError

Given: TypeAlias = Iterable[Conversation | Sequence[Mapping[str, str]]]
_WORD = re.compile(r"\w+(?:'\w+)*")


class Line(NamedTuple):
    """One line of the agent."""

    turn: int
    """From 1."""
    place: int
    """Index in the conversation's messages."""
    text: str
    message: str
    """The user's message before it, "" where there is none."""


def opened(conversations: Given) -> list[Conversation]:
    """As `Conversation`s. Plain lists of messages are checked and called "conversation 1" and so on.

    Raises `ConversationError`, and `SignalError` where two have one id: an interval could not tell them apart.
    """
    if isinstance(conversations, (str, bytes, Mapping, Conversation)) or not hasattr(conversations, "__iter__"):
        raise ConversationError(f"expected a list of conversations, got {shown(conversations)}")
    found = []
    for number, one in enumerate(conversations, 1):
        name = f"conversation {number}"
        found.append(one if isinstance(one, Conversation) else Conversation(name, check_messages(one, name)))
    counts = Counter(one.id for one in found)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise SignalError(f"conversation {twice[0]!r} is given twice: give each an id of its own")
    return found


def lines(conversation: Conversation) -> list[Line]:
    """The agent's lines in order; none for a conversation in which it says nothing."""
    found: list[Line] = []
    message = ""
    for place, said in enumerate(conversation.messages):
        if said["role"] == "user":
            message = said["content"]
        elif said["role"] == "assistant":
            found.append(Line(len(found) + 1, place, said["content"], message))
            message = ""
    return found


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Runs of n words in lower case, without punctuation, in order. Raises `SignalError` for n < 1."""
    whole("n", n, SignalError, 1)
    words = _WORD.findall(text.lower())
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
