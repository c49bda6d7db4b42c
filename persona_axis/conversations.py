"""Conversations: the scripts and persona-jailbreaks that ship with the package, and logs that the user brings.

Logs are read as they are, one `{"messages": [...]}` a line, streamed; what cannot be measured is refused by line and
message, never bent into shape. Nothing here needs numpy or torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from persona_axis._asked import path_of
from persona_axis.conversation_probes import (
    DOMAINS,
    DRIFTING,
    KINDS,
    SPLITS,
    STABILISING,
    Jailbreak,
    Script,
    Turn,
    load_jailbreaks,
    load_scripts,
)
from persona_axis.errors import ConversationError
from persona_axis.files.plainfile import open_file
from persona_axis.files.records import json_object

__all__ = [
    "DOMAINS", "DRIFTING", "KINDS", "SPLITS", "STABILISING", "Conversation", "Jailbreak", "Script", "Turn",
    "check_messages", "load_jailbreaks", "load_scripts", "read_conversations",
]  # fmt: skip

ROLES = ("system", "user", "assistant")
_TOOLS = ("tool_calls", "function_call", "audio")
_NUMBERED = re.compile(r"line [0-9]+")


@dataclass(frozen=True)
class Conversation:
    """Messages ({"role", "content"}); `kinds` has one entry for each user message in order, or is empty."""

    id: str
    messages: tuple[dict[str, str], ...]
    domain: str | None = None
    split: str | None = None
    kinds: tuple[str | None, ...] = ()


def read_conversations(
    path: str | Path, skip_bad: bool = False, on_bad: Callable[[str], None] | None = None
) -> Iterator[Conversation]:
    """Conversations of a file of JSON lines, `{"messages": [...]}` each, one at a time.

    Optional keys: `id` (else "line 7"), `domain`, `split`, `kinds` (one for each user message, null where unknown);
    all others are ignored, so that a service's logs can be read as they are. Raises `ConversationError` with the
    line for what cannot be read; with `skip_bad` such a line is passed over and `on_bad` told the reason. A file
    that yields nothing is an error either way. The file is opened at once, and closed when the iterator is.
    """
    path_of("path", path)
    try:
        file = open_file(path)  # _conversations closes it
    except OSError as error:
        raise ConversationError(f"cannot read {path}: {error.strerror}") from error
    return _conversations(file, str(path), skip_bad, on_bad or (lambda _reason: None))


def check_messages(messages: Any, where: str) -> tuple[dict[str, str], ...]:
    """The messages with their role and content alone, if they are a conversation that can be measured.

    At least one message and one of the assistant, roles system, user, assistant, at most one system message and that
    first, every content a text. Raises `ConversationError` that begins with `where` and names the message by its
    index from 0.
    """
    if not isinstance(messages, (list, tuple)):
        raise ConversationError(f"{where}: 'messages' must be a list, got {type(messages).__name__}")
    if not messages:
        raise ConversationError(f"{where}: the conversation is empty: it needs messages, some of them the assistant's")
    checked = tuple(_message(message, f"{where}: messages[{index}]") for index, message in enumerate(messages))
    systems = [index for index, message in enumerate(checked) if message["role"] == "system"]
    if len(systems) > 1:
        raise ConversationError(
            f"{where}: messages[{systems[1]}] is a second system message, after messages[{systems[0]}]: keep one"
        )
    if systems and systems[0]:
        raise ConversationError(f"{where}: messages[{systems[0]}] is the system message: it must come first")
    if not any(message["role"] == "assistant" for message in checked):
        count = f"{len(checked)} message{'s' * (len(checked) > 1)}"
        raise ConversationError(f"{where}: no assistant turn in {count}: there is nothing to measure")
    return checked


def _conversations(
    file: BinaryIO, path: str, skip_bad: bool, on_bad: Callable[[str], None]
) -> Iterator[Conversation]:
    ids: set[int] = set()  # hashes of those given: they are all that grows with the file
    good = bad = 0
    with file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                record = json_object(line, where, ConversationError, first=number == 1)
                if record is None:
                    continue
                conversation = _conversation(record, where, number, ids)
            except ConversationError as error:
                if not skip_bad:
                    raise
                bad += 1
                on_bad(str(error))
                continue
            good += 1
            yield conversation
    if not good:
        raise ConversationError(f"{path}: holds no conversation" + (f" ({bad} bad lines)" if bad else ""))


def _conversation(record: dict[str, Any], where: str, number: int, ids: set[int]) -> Conversation:
    if "messages" not in record:
        keys = ", ".join(map(repr, record)) or "none"
        raise ConversationError(f"{where}: no key 'messages' (the keys are {keys[:80]})")
    messages = check_messages(record["messages"], where)
    named = {key: record.get(key) for key in ("domain", "split")}
    for key, value in named.items():
        if value is not None and not (isinstance(value, str) and value):
            raise ConversationError(f"{where}: {key!r} must be a text, got {value!r:.40}")
    kinds, said = record.get("kinds") or (), sum(message["role"] == "user" for message in messages)
    if not isinstance(kinds, (list, tuple)) or not all(kind is None or isinstance(kind, str) for kind in kinds):
        raise ConversationError(f"{where}: 'kinds' must be a list of texts or nulls")
    if kinds and len(kinds) != said:
        raise ConversationError(f"{where}: {len(kinds)} kinds for {said} user messages")
    name = _id(record.get("id"), where, number, ids)  # last, so that a line that is passed over takes no id
    return Conversation(name, messages, named["domain"], named["split"], tuple(kinds))


def _id(given: Any, where: str, number: int, ids: set[int]) -> str:
    own = f"line {number}"
    if given is None or given == own:
        return own
    if isinstance(given, bool) or not isinstance(given, (str, int)) or given == "":
        raise ConversationError(f"{where}: 'id' must be a text or a number, got {given!r:.40}")
    name = _plain(str(given), f"{where}: 'id'")
    if _NUMBERED.fullmatch(name):
        raise ConversationError(f"{where}: id {name!r} is the name of another line: choose another")
    if hash(name) in ids:
        raise ConversationError(f"{where}: id {name!r} is given twice")
    ids.add(hash(name))
    return name


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise ConversationError(f"{where} must be an object with role and content, got {type(message).__name__}")
    role = message.get("role")
    if role not in ROLES:
        raise ConversationError(f"{where}: unknown role {role!r:.40}; the roles are {', '.join(ROLES)}")
    if tools := [key for key in _TOOLS if message.get(key)]:
        raise ConversationError(f"{where} ({role}) holds {tools[0]}: only turns of plain text can be measured")
    content = message.get("content")
    if not isinstance(content, str):
        what = {"NoneType": "missing or null", "list": "a list of parts (images, audio?)"}
        kind = what.get(type(content).__name__, f"of type {type(content).__name__}")
        raise ConversationError(f"{where} ({role}): content is {kind}: only turns of plain text can be measured")
    return {"role": str(role), "content": _plain(content, f"{where} ({role})")}


def _plain(text: str, where: str) -> str:
    """JSON can spell half a character, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConversationError(f"{where} holds half of a surrogate pair, which is no text") from None
    return text
