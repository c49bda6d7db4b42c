"""Ranking contexts from a JSONL file that a user brings, in the shape of Dialogue NLI's evaluation set.

One object a line:

    {"persona": "You are ..." or ["i like cats.", ...],
     "context": ["what the user says", "the reply", ..., "what the user says last"],
     "candidates": {"gold": "..." , "contradicting": ["...", ...], "entailing": [...], "random": [...]},
     "distractors": ["another persona", ...]}

A persona's lines are joined with spaces. A turn of the context may also be {"role": "user", "content": "..."}. Kinds
of candidates other than gold may be left out, and so may `distractors`; then whoever ranks chooses them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from persona_axis._asked import path_of
from persona_axis.errors import ListenerError
from persona_axis.files.records import json_object
from persona_axis.levers.ranking import KINDS, Context

_KEYS = ("persona", "context", "candidates", "distractors")
_SPEAKERS = ("user", "assistant")


def load_contexts(path: str | os.PathLike[str]) -> list[Context]:
    """Every context of a file, in its order. Raises `ListenerError` with the file and the line."""
    try:
        lines = path_of("path", path).read_bytes().splitlines()
    except OSError as error:
        raise ListenerError(f"cannot read {path}: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        record = json_object(line, where, ListenerError, first=number == 1)
        if record is not None:
            try:
                found.append(_context(record))
            except ListenerError as error:
                raise ListenerError(f"{where}: {error}") from None
    if not found:
        raise ListenerError(f"{path}: the file holds no context")
    return found


def _context(record: Mapping[str, Any]) -> Context:
    if unknown := sorted(set(record) - set(_KEYS)):
        raise ListenerError(f"unknown key {unknown[0]!r}; the keys are {', '.join(_KEYS)}")
    if missing := [key for key in _KEYS[:3] if key not in record]:
        raise ListenerError(f"missing key {missing[0]!r}")
    persona, given, turns = record["persona"], record["candidates"], record["context"]
    if not isinstance(given, dict):
        raise ListenerError(f"candidates must be an object with the kinds {', '.join(KINDS)}")
    if not isinstance(turns, list):
        raise ListenerError("context must be a list of turns")
    gold = given.get("gold")
    candidates = {kind: _texts(lines, f"candidates.{kind}") for kind, lines in given.items() if kind != "gold"}
    return Context(
        _text(persona, "persona") if isinstance(persona, str) else " ".join(_texts(persona, "persona")),
        tuple(_turn(turn, i) for i, turn in enumerate(turns)),
        {"gold": () if gold is None else (_text(gold, "candidates.gold"),), **candidates},
        _texts(record.get("distractors", []), "distractors"),
    )


def _turn(turn: Any, number: int) -> dict[str, str]:
    if isinstance(turn, str):
        return {"role": _SPEAKERS[number % 2], "content": _text(turn, f"context[{number}]")}
    if not isinstance(turn, dict) or set(turn) != {"role", "content"} or turn["role"] not in _SPEAKERS:
        raise ListenerError(f"context[{number}] must be a text, or a role (user or assistant) with its content")
    return {"role": turn["role"], "content": _text(turn["content"], f"context[{number}].content")}


def _texts(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ListenerError(f"{what} must be a list of texts")
    return tuple(_text(one, f"{what}[{i}]") for i, one in enumerate(value))


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ListenerError(f"{what} must be a text, got {type(value).__name__}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ListenerError(f"{what} holds half a character (a lone surrogate)")
    return value
