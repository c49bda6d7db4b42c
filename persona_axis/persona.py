"""A persona as judges and signals are told of it: what it is like, and facts about it that can be asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from persona_axis._asked import path_of, require, require_each
from persona_axis.conversations import Conversation
from persona_axis.errors import ConversationError
from persona_axis.files.records import json_object

_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Fact:
    """One fact, with a question whose answer is known: ("You live in Calder.", "Where do you live?", "Calder").

    Without a question it can be contradicted, but not asked for.
    """

    statement: str
    question: str = ""
    answer: str = ""

    def __post_init__(self) -> None:
        for name in ("statement", "question", "answer"):
            require(name, getattr(self, name), str)
        if bool(self.question) != bool(self.answer):
            raise ConversationError(
                f"fact {self.statement!r}: a question needs the answer that is known, and an answer its question"
            )


@dataclass(frozen=True)
class Persona:
    """Who somebody is. `role` is the name of the archetype it is made from, where it is one."""

    description: str
    facts: tuple[Fact, ...] = ()
    role: str | None = None

    def __post_init__(self) -> None:
        require("description", self.description, str)
        require_each("facts", self.facts, Fact)
        if self.role is not None:
            require("role", self.role, str)

    @property
    def text(self) -> str:
        """Description and facts as one text."""
        return " ".join(part for part in (self.description, *(f.statement for f in self.facts)) if part)

    @property
    def statements(self) -> tuple[str, ...]:
        """The sentences of the description, then the facts that it does not state already."""
        told = [part for part in _SENTENCE.split(self.description.strip()) if part]
        return (*told, *(f.statement for f in self.facts if f.statement not in told))

    @property
    def askable(self) -> tuple[Fact, ...]:
        """Facts with a question."""
        return tuple(fact for fact in self.facts if fact.question)

    @classmethod
    def of_record(cls, record: Mapping[str, Any], where: str) -> Persona:
        """From JSON: `description`, and optionally `role` and `facts` ({"statement", "question", "answer"} each).

        Raises `ConversationError` that begins with `where`.
        """
        description, role, facts = record.get("description"), record.get("role"), record.get("facts", [])
        if not isinstance(description, str) or not description.strip():
            raise ConversationError(f"{where}: 'description' must say something, got {description!r:.40}")
        if role is not None and not isinstance(role, str):
            raise ConversationError(f"{where}: 'role' must be a text or null, got {role!r:.40}")
        if not isinstance(facts, list):
            raise ConversationError(f"{where}: 'facts' must be a list, got {type(facts).__name__}")
        return cls(description, tuple(_fact(f, f"{where}: facts[{i}]") for i, f in enumerate(facts)), role)


Personas: TypeAlias = Persona | Mapping[str, Persona] | None
"""One persona for all conversations, or by the conversation's id; None: what its system message says."""


def persona_of(personas: Personas, conversation: Conversation) -> Persona | None:
    """Who the agent of this conversation is meant to be; None where nothing says so."""
    if isinstance(personas, Persona):
        return personas
    if personas is not None:
        require("personas", personas, Mapping)
        found = personas.get(conversation.id)
        if found is not None:
            require(f"personas[{conversation.id!r:.40}]", found, Persona)
        return found
    told = next((m["content"] for m in conversation.messages if m["role"] == "system"), "")
    return Persona(told) if told.strip() else None


def _fact(given: Any, where: str) -> Fact:
    if not isinstance(given, Mapping) or set(given) - {"statement", "question", "answer"}:
        raise ConversationError(f"{where} must be an object with statement, question and answer, got {given!r:.60}")
    parts = [given.get(key, "") for key in ("statement", "question", "answer")]
    if not all(isinstance(part, str) for part in parts) or not parts[0].strip():
        raise ConversationError(f"{where}: statement, question and answer are texts, and the statement says something")
    try:
        return Fact(*parts)
    except ConversationError as error:
        raise ConversationError(f"{where}: {error}") from error


def read_personas(path: str | Path) -> Persona | dict[str, Persona]:
    """One persona for all, or by conversation, from JSON lines as `Persona.of_record` takes them.

    A file of several lines has the `conversation`'s id on each. Raises `ConversationError` with file and line.
    """
    found: dict[str | None, Persona] = {}
    try:
        lines = path_of("path", path).read_bytes().splitlines()
    except OSError as error:
        raise ConversationError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        record = json_object(line, where, ConversationError, first=number == 1)
        if record is None:
            continue
        whose = record.get("conversation")
        if whose is not None and not isinstance(whose, str):
            raise ConversationError(f"{where}: 'conversation' must be the id of one, got {whose!r:.40}")
        if whose in found:
            who = "no conversation" if whose is None else f"conversation {whose!r}"
            raise ConversationError(f"{where}: a second persona for {who}: with several, name the conversation of each")
        found[whose] = Persona.of_record(record, where)
    if not found:
        raise ConversationError(f"{path}: holds no persona")
    if None in found and len(found) > 1:
        raise ConversationError(f"{path}: one persona is for all conversations and others are for single ones: choose")
    return found[None] if None in found else {str(whose): persona for whose, persona in found.items()}
