"""JSON lines read strictly: one object a line, every complaint with the file and the line."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from persona_axis.errors import PersonaAxisError, ProbeError
from persona_axis.files.plainfile import read_file


def json_object(line: bytes, where: str, error: type[PersonaAxisError], first: bool = False) -> dict[str, Any] | None:
    """The JSON object that stands on a line, None on a blank one. The `first` line may begin with a byte order mark.

    Raises `error` for anything else: other JSON, text that is not UTF-8, a key that is given twice.
    """
    try:
        text = line.decode("utf-8-sig" if first else "utf-8")
        record = json.loads(text, object_pairs_hook=_unique_keys) if text.strip() else None
    except (ValueError, RecursionError) as problem:  # decoding and JSON errors are ValueErrors
        raise error(f"{where}: not a JSON object in UTF-8 ({problem})") from problem
    if not text.strip():
        return None
    if not isinstance(record, dict):
        raise error(f"{where}: expected a JSON object, got {type(record).__name__}")
    return record


def records(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) for each line of a file of probes that is not blank; every object has exactly `keys`."""
    try:
        lines = read_file(path).splitlines()
    except OSError as error:
        raise ProbeError(f"cannot read {path}: {error.strerror}") from error
    empty = True
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        record = json_object(line, where, ProbeError, first=number == 1)
        if record is None:
            continue
        check_keys(record, keys, where)
        empty = False
        yield where, record
    if empty:
        raise ProbeError(f"{path}:1: the file holds no entry")


def check_keys(record: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    """Raise `ProbeError` unless the object has exactly these keys."""
    if unknown := sorted(set(record) - set(keys)):
        wanted = ", ".join(keys)
        raise ProbeError(f"{where}: unknown key {', '.join(map(repr, unknown))}; the keys are {wanted}")
    if missing := [key for key in keys if key not in record]:
        raise ProbeError(f"{where}: missing key {', '.join(map(repr, missing))}")


def text_of(record: dict[str, Any], key: str, where: str) -> str:
    """The text under `key`, checked as `checked_text` does."""
    return checked_text(record[key], repr(key), where)


def checked_text(value: Any, what: str, where: str) -> str:
    """`value` if it is a text that says something, without white space around it; else a `ProbeError`."""
    if not isinstance(value, str):
        raise ProbeError(f"{where}: {what} must be a text, got {type(value).__name__}")
    if not same_text_key(value):
        raise ProbeError(f"{where}: {what} is empty")
    if value != value.strip():
        raise ProbeError(f"{where}: {what} begins or ends with white space")
    return value


def same_text_key(text: str) -> str:
    """What makes a text that text: letters, marks and digits, whatever the case, punctuation and spacing."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if unicodedata.category(character)[0] in "LMN")


class Seen:
    """Refuses a text that was there before, and says where; an `exact` one only letter for letter."""

    def __init__(self, what: str, exact: bool = False) -> None:
        self.what = what
        self.exact = exact
        self.places: dict[str, str] = {}

    def add(self, text: str, where: str) -> None:
        """Remember `text`. Raises `ProbeError` where the same text, by `same_text_key`, is known already."""
        key = text if self.exact else same_text_key(text)
        if key in self.places:
            raise ProbeError(f"{where}: {self.what} {text!r} repeats the one at {self.places[key]}")
        self.places[key] = where


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key is given twice")
    return record
